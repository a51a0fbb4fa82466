"""Training: made or prepared data in, weights out."""
