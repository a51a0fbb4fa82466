"""The frames of a view, picked while a video is decoded.

What "nearest" and "next" mean is told in :class:`thinksound.media.views.View`. A drifting list follows the
reader of published MMAudio instead, frame by frame:

* Its clock starts at 0, not at the first frame, so that the first frame fills whatever comes before it.
* A tick shows the first frame at its time or after, and the ticks are a running float64 sum of ``1 / fps``.
  At 25 a second that sum gets ahead of the frames: at 25 fps, tick 6 misses frame 6, and later ones follow.
* Times are those that the file stores. Frames before 0 or later than the end are skipped, and the last
  frame is never repeated: a list that falls short makes everything shorter that is computed from it.
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
_REORDERED = 16  # frames; H.264 holds back no more, and the times of an AVI are out of order by as many


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
    def see(self, frame: TimedFrame, rgb: Callable[[], np.ndarray]) -> None:
        """A frame appears; ``rgb`` gives its pixels, for frames that are picked."""

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
    """Picks as the reader of published MMAudio does."""

    def __init__(self, view: View, until_s: float) -> None:
        """``until_s``: frames later than that on the clock of the file are not seen."""
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
    """An empty list for a view of a video of at most ``limit_s`` seconds, cut or not."""
    if drifting:
        return DriftingFrames(view, limit_s)
    limit = view.count(limit_s)
    return NextFrames(view, limit, cut) if view.pick == "next" else NearestFrames(view, limit)


def _nearest(ticks: Fraction) -> int:
    half = Fraction(1, 2)
    return math.floor(ticks + half) if ticks >= 0 else math.ceil(ticks - half)
