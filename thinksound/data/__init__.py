"""Clips for training and evaluation: read, encoded once, and stored on disk."""
