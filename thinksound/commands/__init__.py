"""The commands built on training and evaluation, one module each, and what all commands share."""
