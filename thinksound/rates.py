"""Limits of a video's duration, and the conversion from seconds to samples."""

from __future__ import annotations

MIN_DURATION_S = 0.1
MAX_DURATION_S = 180.0


def audio_sample_count(duration_s: float, sample_rate: int) -> int:
    """Return the number of samples per channel in ``duration_s`` seconds; ``sample_rate`` is in Hz."""
    return round(sample_rate * float(duration_s))
