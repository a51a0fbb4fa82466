"""The scene behind a synthetic clip, its known truth: sources, events, background, room and camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .materials import Color

FloatArray = NDArray[np.float64]

CURVE_HZ = 50  # samples of a curve per second
MIN_GAP_S = 0.16  # between two onsets of one source


@dataclass(frozen=True)
class Curve:
    """A quantity over time: values at 0, 1/50, 2/50 … seconds, linear between them."""

    values: tuple[float, ...]

    def at(self, seconds: float | FloatArray) -> FloatArray:
        return np.asarray(np.interp(seconds, np.arange(len(self.values)) / CURVE_HZ, self.values))


@dataclass(frozen=True)
class Event:
    """One impact: when, how hard (0 to 1), and from where (pan -1 left to 1 right)."""

    onset_s: float
    strength: float
    pan: float


@dataclass(frozen=True)
class Source:
    """One source of sound.

    ``x`` is its place in frame widths; the pan follows it. ``control`` drives continuous sounds: the pitch of
    an engine in Hz, the density of rain or the speed of a box from 0 to 1. ``misses`` are the times of
    movements that look like an impact and stop short of it.
    """

    kind: str
    material: str
    size: float  # 0.7 small and high to 1.4 large and low
    gain: float
    color: Color
    accent: Color  # of the part that moves
    color_tells: bool  # the colour is the usual one of the material
    x: Curve
    reach: float  # how far the movement goes, in frame heights
    lead_s: float  # from the start of a movement to its impact
    events: tuple[Event, ...] = ()
    control: Curve | None = None
    misses: tuple[float, ...] = ()
    seed: int = 0  # of the noise in its sound and of details in its drawing

    @property
    def onsets(self) -> FloatArray:
        return np.array([event.onset_s for event in self.events])


@dataclass(frozen=True)
class Distractor:
    """Something that moves silently: ``drift``, ``swing``, or ``hover`` (turns above the floor)."""

    style: str
    color: Color
    size: float
    x: float
    y: float
    period_s: float


@dataclass(frozen=True)
class Room:
    """The acoustics: reverberation time in seconds and level of the reflections."""

    name: str
    t60_s: float
    wet: float


@dataclass(frozen=True)
class Background:
    style: str
    wall: Color
    floor: Color
    floor_y: float  # where things stand, in frame heights
    seed: int


@dataclass(frozen=True)
class Scene:
    """A whole clip. Times are in seconds, places in frame widths and heights."""

    split: str
    seed: int
    duration_s: float
    fps: int
    width: int
    height: int
    background: Background
    room: Room
    sources: tuple[Source, ...]
    distractors: tuple[Distractor, ...] = ()
    occluder: tuple[float, float] | None = None  # centre and width of a post in front, in frame widths
    jitter: float = 0.0  # of the camera, in frame heights

    @property
    def frame_count(self) -> int:
        return round(self.duration_s * self.fps)

    def sample_count(self, sample_rate: int) -> int:
        return round(self.frame_count * sample_rate / self.fps)


def pan_of(x: float | FloatArray) -> FloatArray:
    """Pan of a place in frame widths; the left and right edges of the frame have -0.9 and 0.9."""
    return np.clip((np.asarray(x) * 2 - 1) * 0.9, -1, 1)
