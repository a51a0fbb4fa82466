"""Weight files: where they come from, how they are read, verified and converted."""
