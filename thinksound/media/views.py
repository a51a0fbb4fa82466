"""What an encoder wants to see of a video: frames at one rate, in one pixel form.

A view says how its frames are picked and reduced; decoding fills all views of a family in one pass. This
module knows rates and pixels only, not the networks behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class View:
    """One list of frames that decoding prepares.

    ``pick`` is the rule by which ticks, ``fps`` of them a second from the first frame on, choose a frame:

    * "nearest": a frame falls on the tick nearest to its time, halves away from zero. Each tick shows the
      last frame that fell on it or before. The last frame is chosen only where the list is too short.
    * "next": each tick shows the first frame at its time or after it, up to the end of a cut; ticks after
      the last frame show the last frame.
    """

    name: str  # such as "clip" or "sync"
    fps: int  # ticks per second
    count: Callable[[float], int]  # frames for a duration in seconds; at least one
    pixels: Callable[[np.ndarray], np.ndarray]  # uint8 (height, width, 3), upright, to uint8 (size, size, 3)
    size: int  # pixels on each side
    pick: Literal["nearest", "next"] = "nearest"
