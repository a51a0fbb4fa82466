"""Clips for training and evaluation: read, encoded once, and kept on disk."""
