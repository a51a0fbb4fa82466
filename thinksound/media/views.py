"""What an encoder wants to see of a video: frames at one rate, in one pixel form.

A view says how its frames are picked and reduced; decoding fills all views of a family in one pass. This
module knows rates and pixels only, not the networks behind them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

_GROWTH = 32  # frames (5 MB at 224x224) by which a list's memory grows


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


class FrameList(ABC):
    """The frames of one view while a video is decoded, in memory that grows with them."""

    def __init__(self, view: View, limit: int) -> None:
        """``limit``: entries past this one would be cut."""
        self.view = view
        self.count = 0
        self._limit = limit
        self._entries = np.empty((0, view.size, view.size, 3), np.uint8)

    @property
    def full(self) -> bool:
        """Whether later frames can change nothing."""
        return self.count >= self._limit

    @abstractmethod
    def see(self, time: Fraction, rgb: Callable[[], np.ndarray]) -> None:
        """A frame appears at ``time`` (s); ``rgb`` gives its pixels, for frames that are picked."""

    @abstractmethod
    def finish(self, count: int) -> Tensor:
        """All entries, cut or extended to ``count``: uint8 (count, size, size, 3)."""

    def _append(self, rgb: Callable[[], np.ndarray], repeats: int) -> None:
        repeats = min(repeats, self._limit - self.count)
        if repeats > 0:
            self._write(self.view.pixels(rgb()), repeats)

    def _write(self, pixels: np.ndarray, repeats: int) -> None:
        count = self.count + repeats
        if count > len(self._entries):
            # In place: the pages are moved, not copied.
            self._entries.resize((count + _GROWTH, *self._entries.shape[1:]), refcheck=False)
        self._entries[self.count : count] = pixels
        self.count = count

    def _take(self, count: int) -> Tensor:
        self._entries.resize((count, *self._entries.shape[1:]), refcheck=False)
        return torch.from_numpy(self._entries)


class NearestFrames(FrameList):
    """Picks the last frame that fell on each tick or before."""

    _tick = 0  # on which the frame on screen fell
    _rgb: Callable[[], np.ndarray] | None = None  # of the frame on screen

    def see(self, time: Fraction, rgb: Callable[[], np.ndarray]) -> None:
        tick = _nearest(time * self.view.fps)
        if self._rgb is not None:
            self._append(self._rgb, tick - self._tick)
        self._tick, self._rgb = tick, rgb

    def finish(self, count: int) -> Tensor:
        if self.count == 0:
            assert self._rgb is not None, "no frame was seen"
            self._append(self._rgb, 1)
        if self.count < count:
            self._write(self._entries[self.count - 1].copy(), count - self.count)
        return self._take(count)


class NextFrames(FrameList):
    """Picks the first frame at the time of each tick or after it."""

    _start: Fraction | None = None  # s; of the first frame, and of the first tick
    _rgb: Callable[[], np.ndarray] | None = None  # of the last frame that counts
    _over = False

    def __init__(self, view: View, limit: int, cut: Fraction | None) -> None:
        """``cut``: seconds after the first frame; frames later than that are not seen."""
        super().__init__(view, limit)
        self._cut = cut

    @property
    def full(self) -> bool:
        return self._over or super().full

    def see(self, time: Fraction, rgb: Callable[[], np.ndarray]) -> None:
        if self._start is None:
            self._start = time
        if self._cut is not None and time - self._start > self._cut:
            self._over = True
            return
        self._rgb = rgb
        self._append(rgb, math.floor((time - self._start) * self.view.fps) + 1 - self.count)

    def finish(self, count: int) -> Tensor:
        if self.count < count:
            assert self._rgb is not None, "no frame was seen"
            self._write(self.view.pixels(self._rgb()), count - self.count)
        return self._take(count)


def frame_list(view: View, limit_s: float, cut: Fraction | None) -> FrameList:
    """An empty list for a view of a video of at most ``limit_s`` seconds, cut or not."""
    limit = view.count(limit_s)
    return NextFrames(view, limit, cut) if view.pick == "next" else NearestFrames(view, limit)


def _nearest(ticks: Fraction) -> int:
    half = Fraction(1, 2)
    return math.floor(ticks + half) if ticks >= 0 else math.ceil(ticks - half)
