"""Picks the frames of a view while a video is decoded.

:class:`thinksound.media.views.View` says what "nearest" and "next" mean. A drifting list reproduces the
reader of published MMAudio instead, frame by frame:

* The clock starts at 0, not at the first frame; the first frame fills the ticks before it.
* A tick shows the first frame at its time or after it. The tick times are a running float64 sum of
  ``1 / fps``, whose rounding error grows. At 25 ticks a second the sum becomes larger than the exact times:
  in a video of 25 fps, tick 6 misses frame 6, and so do later ticks.
* Times are those that the file stores. Frames before 0 or after the end are skipped. The last frame is never
  repeated: if a list is too short, all that is computed from it becomes shorter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from .timeline import TimedFrame
from .views import View

_GROWTH = 32  # frames (5 MB at 224x224) by which a list's memory grows
_REORDERED = 16  # frames by which the times of an AVI may be out of order; H.264 reorders no more


class FrameList(ABC):
    """The frames of one view while a video is decoded, in memory that grows with them."""

    def __init__(self, view: View, limit: int) -> None:
        """``limit``: the largest number of entries."""
        self.view = view
        self.count = 0
        self._limit = limit
        self._entries = np.empty((0, view.size, view.size, 3), np.uint8)

    @property
    def full(self) -> bool:
        """Whether later frames cannot change the list."""
        return self.count >= self._limit

    @abstractmethod
    def see(self, frame: TimedFrame, rgb: Callable[[], np.ndarray]) -> None:
        """Take the next frame in; ``rgb`` returns its pixels and is called only if the frame is picked."""

    @abstractmethod
    def finish(self, count: int) -> Tensor:
        """Return all entries, cut or extended to ``count``: uint8 (count, size, size, 3)."""

    def _append(self, rgb: Callable[[], np.ndarray], repeats: int) -> None:
        repeats = min(repeats, self._limit - self.count)
        if repeats > 0:
            self._write(self.view.pixels(rgb()), repeats)

    def _write(self, pixels: np.ndarray, repeats: int) -> None:
        count = self.count + repeats
        if count > len(self._entries):
            # Resizing in place lets the system move memory pages instead of copying them.
            self._entries.resize((count + _GROWTH, *self._entries.shape[1:]), refcheck=False)
        self._entries[self.count : count] = pixels
        self.count = count

    def _take(self, count: int) -> Tensor:
        self._entries.resize((count, *self._entries.shape[1:]), refcheck=False)
        return torch.from_numpy(self._entries)


class NearestFrames(FrameList):
    """Picks for each tick the last frame that fell on it or before it."""

    _tick = 0  # that the frame on screen fell on
    _rgb: Callable[[], np.ndarray] | None = None  # of the frame on screen

    def see(self, frame: TimedFrame, rgb: Callable[[], np.ndarray]) -> None:
        tick = _nearest(frame.time * self.view.fps)
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
    """Picks for each tick the first frame at its time or after it."""

    _start: Fraction | None = None  # s; time of the first frame, and of the first tick
    _rgb: Callable[[], np.ndarray] | None = None  # of the last frame up to the cut
    _over = False  # whether a frame after the cut was seen

    def __init__(self, view: View, limit: int, cut: Fraction | None) -> None:
        """``cut``: seconds after the first frame; later frames are ignored."""
        super().__init__(view, limit)
        self._cut = cut

    @property
    def full(self) -> bool:
        return self._over or super().full

    def see(self, frame: TimedFrame, rgb: Callable[[], np.ndarray]) -> None:
        if self._start is None:
            self._start = frame.time
        elapsed = frame.time - self._start
        if self._cut is not None and elapsed > self._cut:
            self._over = True
            return
        self._rgb = rgb
        self._append(rgb, math.floor(elapsed * self.view.fps) + 1 - self.count)

    def finish(self, count: int) -> Tensor:
        if self.count < count:
            assert self._rgb is not None, "no frame was seen"
            self._write(self.view.pixels(self._rgb()), count - self.count)
        return self._take(count)


class DriftingFrames(FrameList):
    """Picks the frames that the reader of published MMAudio picks."""

    def __init__(self, view: View, until_s: float) -> None:
        """``until_s``: time on the file's clock; later frames are ignored."""
        super().__init__(view, math.ceil(view.fps * until_s))
        self._until_s = until_s
        self._tick_s = 0.0
        self._late = 0

    @property
    def full(self) -> bool:
        return self._late > _REORDERED or super().full

    def see(self, frame: TimedFrame, rgb: Callable[[], np.ndarray]) -> None:
        if frame.stored is None or frame.stored < 0:
            return
        time_s = float(frame.stored)
        if time_s > self._until_s:
            self._late += 1
            return
        repeats = 0
        while self._tick_s <= time_s:
            self._tick_s += 1 / self.view.fps
            repeats += 1
        self._append(rgb, repeats)

    def finish(self, count: int) -> Tensor:
        assert count <= self.count, (count, self.count)
        return self._take(count)


def frame_list(view: View, limit_s: float, cut: Fraction | None, drifting: bool) -> FrameList:
    """Return an empty list for a view of a video of at most ``limit_s`` seconds; ``cut`` is in seconds."""
    if drifting:
        return DriftingFrames(view, limit_s)
    limit = view.count(limit_s)
    return NextFrames(view, limit, cut) if view.pick == "next" else NearestFrames(view, limit)


def _nearest(ticks: Fraction) -> int:
    half = Fraction(1, 2)
    return math.floor(ticks + half) if ticks >= 0 else math.ceil(ticks - half)
