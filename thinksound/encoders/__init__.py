"""Encoders: frames and texts to sequences of features."""
