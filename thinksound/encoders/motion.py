"""Frames at 25 fps to synchronisation features, with the convolutional encoder of the tiny preset."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.motion import MotionTower
from ..models.synchformer import SYNC_FEATURES_PER_SEGMENT, sync_segment_count
from .pixels import normalize_sync

_BATCH = 64  # frames that are downsampled at once


@torch.inference_mode()
def encode_motion(
    tower: MotionTower, frames: Tensor, *, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Returns as many features as Synchformer would, evenly spaced over the clip.

    Args:
        tower: the encoder.
        frames: uint8 ``(P, 224, 224, 3)``, P at least 16, on any device.
        progress: called after each batch with the frames done and the frames in all.

    Returns:
        ``(8 * segments, D)`` float32 on the tower's device.
    """
    device = next(tower.parameters()).device
    small = []
    for part in frames.split(_BATCH):
        small.append(tower.reduce(normalize_sync(part.to(device))))
        if progress:
            progress(sum(map(len, small)), len(frames))
    count = SYNC_FEATURES_PER_SEGMENT * sync_segment_count(len(frames))
    return tower.spread(tower.follow(torch.cat(small)[None]), count)[0]
