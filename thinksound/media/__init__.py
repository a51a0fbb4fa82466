"""Reads and writes video, sound and image files."""
