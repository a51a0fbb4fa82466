"""How long a video may be, and conversions between seconds and samples."""

from __future__ import annotations

MIN_DURATION_S = 0.1
MAX_DURATION_S = 180.0


def audio_sample_count(duration_s: float, sample_rate: int) -> int:
    """Audio samples (per channel) of ``duration_s`` seconds of sound."""
    return round(sample_rate * float(duration_s))
