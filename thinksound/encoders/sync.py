"""Frames at 25 fps to synchronisation features, with Synchformer.

Synchformer (arXiv 2401.16423). A segment has 16 frames (0.64 s) and gives 8 features; one starts every
8 frames. The segments' features are concatenated as in the published extractor, so overlapping frames are
represented twice. Segments do not depend on each other: the batch size only affects time and memory.
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
    """Returns the Synchformer features of a clip.

    Args:
        tower: Synchformer's visual tower.
        frames: uint8 ``(P, 224, 224, 3)``, P at least 16, on any device; moved to the network's in batches.
            Frames after the last whole segment are not used.
        segment_batch: segments per call of the network.
        progress: called after each batch with the segments done and the segments in all.

    Returns:
        ``(8 * segments, D)`` float32 on the network's device.
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
        patches = tower.embed(pixels)  # (P / 2, n, D), computed once though most are in two segments
        batch = patches.unfold(0, SYNC_SEGMENT // pair, SYNC_STRIDE // pair).movedim(-1, 1)  # (N, 8, n, D)
        features.append(tower.encode(batch).flatten(0, 1).float())  # (8 N, D)
        if progress:
            progress(first + count, segments)
    return torch.cat(features)
