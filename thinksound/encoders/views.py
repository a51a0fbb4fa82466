"""What each visual encoder sees of a video: rate, pixels, and how many frames a duration gives.

The counts are those of the published extractors (8 frames for the CLIP and 25 for Synchformer a second,
both rounded down). Two things differ from upstream ThinkSound, on purpose: every feature that was
extracted is given to the network (the original entry points cut or zero-pad to ``8 * int(d)`` and
``24 * int(d)``), and a clip shorter than one segment of Synchformer still gets one. 9 s give 72 frames
for the CLIP and 216 Synchformer features in both.

MMAudio's views pick the first frame at the time of a tick or after it, as the original does, with these
deviations: ticks are exact, where the original's sum of 1/25 s drifts (docs/measurements.md); they count from
the first frame, as the sound does, not from 0; and the last frame is repeated where a list falls short, so
that sound is as long as the picture, where the original makes the sound shorter. The original's own reader is
:func:`thinksound.media.decode.decode_video` with ``drifting=True``.
"""

from __future__ import annotations

from ..media.views import View
from ..models.synchformer import SYNC_FEATURES_PER_SEGMENT, SYNC_FPS, SYNC_SEGMENT, sync_segment_count
from .pixels import IMAGE_SIZE, SQUASHED_SIZE, clip_pixels, squashed_pixels, sync_pixels

CLIP_FPS = 8  # frames per second seen by MetaCLIP and DFN5B


def clip_frame_count(duration_s: float) -> int:
    """Frames for the CLIP in ``duration_s`` seconds."""
    return max(1, int(CLIP_FPS * float(duration_s)))


def sync_frame_count(duration_s: float) -> int:
    """Frames for Synchformer in ``duration_s`` seconds, one whole segment at least."""
    return max(SYNC_SEGMENT, int(SYNC_FPS * float(duration_s)))


def sync_feature_count(duration_s: float) -> int:
    """Synchformer features of ``duration_s`` seconds."""
    return SYNC_FEATURES_PER_SEGMENT * sync_segment_count(sync_frame_count(duration_s))


METACLIP_VIEW = View("clip", CLIP_FPS, clip_frame_count, clip_pixels, IMAGE_SIZE)
SYNC_VIEW = View("sync", SYNC_FPS, sync_frame_count, sync_pixels, IMAGE_SIZE)

DFN5B_VIEW = View("clip", CLIP_FPS, clip_frame_count, squashed_pixels, SQUASHED_SIZE, "next")
MMAUDIO_SYNC_VIEW = View("sync", SYNC_FPS, sync_frame_count, sync_pixels, IMAGE_SIZE, "next")
