"""Synthetic clips: frames, sound and texts that come from one known scene."""
