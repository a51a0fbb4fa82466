"""Pretrained encoders: pictures and texts in, feature sequences out."""
