"""Where networks run and in which number format."""
