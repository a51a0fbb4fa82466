"""The truth of a clip: what is where, what happens when, and everything the texts cannot show."""

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
    """A quantity over time: values at 0, 1/50, 2/50 … seconds, straight lines between them."""

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
    """One thing that sounds.

    ``x`` is its place in picture widths; the pan follows it. ``control`` drives what sounds on: an
    engine's pitch in Hz, rain's density and a box's speed from 0 to 1. ``misses`` are movements that
    look like the next impact and stop short of it.
    """

    kind: str
    material: str
    size: float  # 0.7 small and high to 1.4 large and low
    gain: float
    color: Color
    accent: Color  # of the part that moves
    color_tells: bool  # the colour is the usual one of the material
    x: Curve
    reach: float  # how far the movement goes, in picture heights
    lead_s: float  # from the start of a movement to its impact
    events: tuple[Event, ...] = ()
    control: Curve | None = None
    misses: tuple[float, ...] = ()
    seed: int = 0  # of the noise in its sound and of details in its picture

    @property
    def onsets(self) -> FloatArray:
        return np.array([event.onset_s for event in self.events])


@dataclass(frozen=True)
class Distractor:
    """Something that moves without a sound: ``drift``, ``swing``, or ``hover`` (turns before the floor)."""

    style: str
    color: Color
    size: float
    x: float
    y: float
    period_s: float


@dataclass(frozen=True)
class Room:
    """Where it sounds: reverberation time in seconds and the level of the reflections."""

    name: str
    t60_s: float
    wet: float


@dataclass(frozen=True)
class Background:
    style: str
    wall: Color
    floor: Color
    floor_y: float  # where things stand, in picture heights
    seed: int


@dataclass(frozen=True)
class Scene:
    """A whole clip. Times in seconds, places in picture widths and heights."""

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
    occluder: tuple[float, float] | None = None  # centre and width of a post in front, in picture widths
    jitter: float = 0.0  # of the camera, in picture heights

    @property
    def frame_count(self) -> int:
        return round(self.duration_s * self.fps)

    def sample_count(self, sample_rate: int) -> int:
        return round(self.frame_count * sample_rate / self.fps)


def pan_of(x: float | FloatArray) -> FloatArray:
    """Pan from the place in the picture: the edges sound at 0.9 of the way to one side."""
    return np.clip((np.asarray(x) * 2 - 1) * 0.9, -1, 1)
