"""What the two picture encoders see of a scene, without a file in between."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..media.frames import clip_pixels, sync_pixels
from ..rates import CLIP_FPS, SYNC_FPS, clip_frame_count, sync_frame_count
from .picture import render_frames
from .scene import Scene


def encoder_pictures(scene: Scene) -> tuple[Tensor, Tensor]:
    """Pictures as `decode_video` gives them for the scene's MP4, but for the loss of its compression.

    Only the frames that an encoder looks at are drawn.

    Returns:
        For MetaCLIP uint8 (V, 224, 224, 3) at 8 per second, for Synchformer uint8 (S', 224, 224, 3) at
        25 per second.
    """
    clip = _on_screen(scene, CLIP_FPS, clip_frame_count(scene.duration_s))
    sync = _on_screen(scene, SYNC_FPS, sync_frame_count(scene.duration_s))
    wanted = np.unique(np.concatenate([clip, sync]))
    frames = dict(zip(wanted.tolist(), render_frames(scene, wanted.tolist()), strict=True))
    for_clip = {index: clip_pixels(frames[index]) for index in np.unique(clip).tolist()}
    for_sync = {index: sync_pixels(frames[index]) for index in np.unique(sync).tolist()}
    return (
        torch.from_numpy(np.stack([for_clip[index] for index in clip.tolist()])),
        torch.from_numpy(np.stack([for_sync[index] for index in sync.tolist()])),
    )


def _on_screen(scene: Scene, rate: int, count: int) -> np.ndarray:
    """Which frame is on screen at each tick of ``rate``: frame i comes at the tick nearest to i / fps."""
    starts = np.floor(np.arange(scene.frame_count) * rate / scene.fps + 0.5)
    return np.searchsorted(starts, np.arange(count), side="right") - 1
