"""The frames of a scene as the encoders take them, without a file in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..media.views import View
from .picture import render_frames
from .scene import Scene


def scene_frames(scene: Scene, views: Sequence[View]) -> dict[str, Tensor]:
    """The frames that `decode_video` would read from the scene's MP4, without its compression.

    Only the frames that an encoder sees are drawn.

    Returns:
        By view name uint8 (N, H, W, 3), with N frames for the scene's duration.
    """
    shown = {view.name: _frame_numbers(scene, view) for view in views}
    wanted = np.unique(np.concatenate(list(shown.values()))).tolist()
    drawn = dict(zip(wanted, render_frames(scene, wanted), strict=True))
    frames = {}
    for view in views:
        pixels = {number: view.pixels(drawn[number]) for number in np.unique(shown[view.name]).tolist()}
        frames[view.name] = torch.from_numpy(
            np.stack([pixels[number] for number in shown[view.name].tolist()])
        )
    return frames


def _frame_numbers(scene: Scene, view: View) -> np.ndarray:
    """The index of the frame that each tick of a view shows; frame i appears at i / fps."""
    count = view.count(scene.duration_s)
    if view.pick == "next":
        first = [math.ceil(Fraction(tick, view.fps) * scene.fps) for tick in range(count)]
        return np.minimum(first, scene.frame_count - 1)
    starts = np.floor(np.arange(scene.frame_count) * view.fps / scene.fps + 0.5)
    return np.searchsorted(starts, np.arange(count), side="right") - 1
