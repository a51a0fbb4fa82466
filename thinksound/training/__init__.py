"""Training: synthetic or prepared clips in, weights out."""
