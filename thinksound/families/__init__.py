"""Model families: one file each, all with the interface in `protocol`."""
