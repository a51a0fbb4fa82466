"""25 fps frames to synchronisation features: overlapping segments through Synchformer.

Synchformer (arXiv 2401.16423). A segment is 16 frames (0.64 s), one starts every 8 frames, and
each gives 8 features; segments are simply put one after the other, as the published extractor
does, so that the overlap is in the features twice. Segments do not see each other: how many go
through the network at once changes time and memory only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.synchformer import (
    SYNC_SEGMENT,
    SYNC_STRIDE,
    VisualTower,
    sync_segment_count,
)
from .pixels import normalize_sync


@torch.inference_mode()
def encode_sync(
    tower: VisualTower,
    frames: Tensor,
    *,
    segment_batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Synchformer features of a clip.

    tower: Synchformer's visual tower.
    frames: uint8 ``(S', 224, 224, 3)`` with S' of at least 16, on any device; moved to the
        network's in batches. Frames after the last whole segment are not used.
    segment_batch: segments per call of the network.
    progress: called after each batch with the segments done and the segments in all.
    Returns float32 ``(8 * segments, D)`` on the network's device.
    """
    device = next(tower.parameters()).device
    pair = tower.config.patch_frames
    segments = sync_segment_count(len(frames))
    features = []
    for first in range(0, segments, segment_batch):
        count = min(segment_batch, segments - first)
        begin = first * SYNC_STRIDE
        end = begin + (count - 1) * SYNC_STRIDE + SYNC_SEGMENT
        pixels = normalize_sync(frames[begin:end].to(device))  # (P, 3, 224, 224)
        patches = tower.embed(pixels)  # (P / 2, n, D), each of them once, though most are in two segments
        batch = patches.unfold(0, SYNC_SEGMENT // pair, SYNC_STRIDE // pair).movedim(-1, 1)  # (N, 8, n, D)
        features.append(tower.encode(batch).flatten(0, 1).float())  # (8 N, D)
        if progress:
            progress(first + count, segments)
    return torch.cat(features)
