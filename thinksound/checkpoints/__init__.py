"""Weight files: finding, downloading, verifying, reading and converting them."""
