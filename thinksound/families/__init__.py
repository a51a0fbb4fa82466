"""Families of networks: one file each, behind one interface (`protocol`)."""
