"""What each visual encoder sees of a video: the frame rate, the pixels, and the frame count of a duration.

The counts are those of the published extractors: 8 frames per second for CLIP and 25 for Synchformer, both
rounded down. Two deviations from the original ThinkSound are deliberate. The network gets every feature that
was extracted, while the original cuts or zero-pads to ``8 * int(d)`` and ``24 * int(d)``. And a clip shorter
than a segment of Synchformer still gets one segment. For 9 s both give 72 CLIP frames and 216 Synchformer
features.

MMAudio's views pick the first frame at or after each tick, like the original, with three deviations. Ticks
are exact, while the original's sum of 1/25 s drifts (docs/measurements.md). Ticks start at the first frame,
as the sound does, not at 0. And the last frame is repeated if the video ends early, so that the sound is as
long as the video, while the original shortens the sound. To read exactly like the original, call
:func:`thinksound.media.decode.decode_video` with ``drifting=True``.
"""

from __future__ import annotations

from ..media.views import View
from ..models.synchformer import SYNC_FEATURES_PER_SEGMENT, SYNC_FPS, SYNC_SEGMENT, sync_segment_count
from .pixels import IMAGE_SIZE, SQUASHED_SIZE, clip_pixels, squashed_pixels, sync_pixels

CLIP_FPS = 8  # frames per second seen by MetaCLIP and DFN5B


def clip_frame_count(duration_s: float) -> int:
    """Returns the number of CLIP frames in ``duration_s`` seconds, at least 1."""
    return max(1, int(CLIP_FPS * float(duration_s)))


def sync_frame_count(duration_s: float) -> int:
    """Returns the number of Synchformer frames in ``duration_s`` seconds, at least one segment."""
    return max(SYNC_SEGMENT, int(SYNC_FPS * float(duration_s)))


def sync_feature_count(duration_s: float) -> int:
    """Returns the number of Synchformer features in ``duration_s`` seconds."""
    return SYNC_FEATURES_PER_SEGMENT * sync_segment_count(sync_frame_count(duration_s))


METACLIP_VIEW = View("clip", CLIP_FPS, clip_frame_count, clip_pixels, IMAGE_SIZE)
SYNC_VIEW = View("sync", SYNC_FPS, sync_frame_count, sync_pixels, IMAGE_SIZE)

DFN5B_VIEW = View("clip", CLIP_FPS, clip_frame_count, squashed_pixels, SQUASHED_SIZE, "next")
MMAUDIO_SYNC_VIEW = View("sync", SYNC_FPS, sync_frame_count, sync_pixels, IMAGE_SIZE, "next")
