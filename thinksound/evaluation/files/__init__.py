"""The field's metrics on folders of files."""
