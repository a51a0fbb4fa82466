"""Picture rates of the published model, and the only conversions between seconds and counts.

The counts follow the published extractor (8 picture features and 25 synchronisation frames a
second, both rounded down) and the published sampler (latents rounded to nearest). Two things
differ from upstream, on purpose: every feature that was extracted is given to the network (the
original entry points cut or zero-pad to ``8 * int(d)`` and ``24 * int(d)``), and a clip shorter
than one synchronisation segment still gets one. 9 s give 72, 216 and 194 in both.
"""

from __future__ import annotations

CLIP_FPS = 8  # pictures per second seen by MetaCLIP
SYNC_FPS = 25  # pictures per second seen by Synchformer
SYNC_SEGMENT = 16  # pictures in one Synchformer segment: 0.64 s
SYNC_STRIDE = 8  # pictures between the starts of two segments
SYNC_FEATURES_PER_SEGMENT = 8  # one feature for every two pictures

MIN_DURATION_S = 0.1
MAX_DURATION_S = 180.0


def clip_frame_count(duration_s: float) -> int:
    """Pictures for MetaCLIP in ``duration_s`` seconds."""
    return max(1, int(CLIP_FPS * float(duration_s)))


def sync_frame_count(duration_s: float) -> int:
    """Pictures for Synchformer in ``duration_s`` seconds, one whole segment at least."""
    return max(SYNC_SEGMENT, int(SYNC_FPS * float(duration_s)))


def sync_segment_count(sync_frames: int) -> int:
    """Overlapping 16-picture segments that fit into ``sync_frames`` pictures."""
    return (sync_frames - SYNC_SEGMENT) // SYNC_STRIDE + 1


def sync_feature_count(duration_s: float) -> int:
    """Synchformer features of ``duration_s`` seconds."""
    return SYNC_FEATURES_PER_SEGMENT * sync_segment_count(sync_frame_count(duration_s))


def latent_frame_count(duration_s: float, sample_rate: int, hop: int) -> int:
    """Latent frames of ``duration_s`` seconds of sound, each of ``hop`` samples."""
    return max(1, round(sample_rate * float(duration_s) / hop))


def audio_sample_count(duration_s: float, sample_rate: int) -> int:
    """Audio samples (per channel) of ``duration_s`` seconds of sound."""
    return round(sample_rate * float(duration_s))
