"""A view: which frames of a video an encoder gets, and in which size.

Decoding fills all views of a family in one pass. This module knows rates and pixels, but no networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """One list of frames that decoding prepares.

    There are ``fps`` ticks a second from the first frame on; ``pick`` says which frame a tick shows:

    * "nearest": a frame falls on the tick nearest to its time; halves round away from zero. Each tick shows
      the last frame that fell on it or before it. The last frame is used only if the list is too short
      without it.
    * "next": each tick shows the first frame at its time or after it, up to the cut; ticks after the last
      frame show the last frame.
    """

    name: str  # such as "clip" or "sync"
    fps: int  # ticks per second
    count: Callable[[float], int]  # number of frames for a duration in seconds; at least one
    pixels: Callable[[np.ndarray], np.ndarray]  # uint8 (height, width, 3), upright, to uint8 (size, size, 3)
    size: int  # pixels on each side
    pick: Literal["nearest", "next"] = "nearest"

    @property
    def form(self) -> str:
        """What `takes` accepts, for messages."""
        return f"uint8 (N, {self.size}, {self.size}, 3) with N of at least {self.count(0)}"

    def takes(self, frames: Tensor) -> bool:
        """Whether ``frames`` have the form that decoding gives them."""
        fits = frames.shape[1:] == (self.size, self.size, 3) and len(frames) >= self.count(0)
        return frames.dtype == torch.uint8 and frames.ndim == 4 and fits
