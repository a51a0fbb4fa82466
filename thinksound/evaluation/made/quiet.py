"""Quiet videos: clips in which nothing sounds, and how loud a model is on them.

Nothing in them moves, or only what makes no sound. A model should then be nearly silent. The level is that of
the raw sound, because normalisation would hide it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...media.views import View
from ...request import Texts
from ...synthetic.make import CLIP_S, make_scene
from ...synthetic.picture import render_frames
from ...synthetic.scene import Scene
from ...synthetic.seeds import MEASURED
from ...synthetic.stream import scene_frames
from ...synthetic.texts import describe
from .scores import Measure

QUIET_DB = -40.0  # dBFS; the loudest 0.1 s of a quiet sound is not above it

_SHAKE_HZ = (0.7, 1.9, 3.1)
_SHAKE = 0.012  # in frame heights, a strong shake of the hard split

Picture = NDArray[np.uint8]  # (H, W, 3)
Frames = Mapping[str, Tensor]  # uint8 (N, H, W, 3) by view


@dataclass(frozen=True)
class QuietClip:
    """A clip of `CLIP_S` seconds in which nothing sounds."""

    kind: str  # of `QUIET_KINDS`
    seed: int  # of its scene and of the noise that its sound is made from
    frames: Frames
    texts: Texts  # those of the scene, had it moved, or empty


@dataclass(frozen=True)
class QuietScores:
    """The level of one sound, in dBFS."""

    kind: str
    seed: int
    has_texts: bool
    loudest_db: float  # RMS of the loudest 0.1 s
    peak_db: float


MEASURES = (
    Measure("clips", "clips", ".0f"),
    Measure("quiet", f"at most {QUIET_DB:g} dBFS", ".3f"),
    Measure("loudest_db", "loudest 0.1 s, dBFS", ".1f"),
    Measure("peak_db", "highest peak, dBFS", ".1f"),
)


def quiet_clip(index: int, views: Sequence[View]) -> QuietClip:
    """One of the clips that are measured: each kind in turn, every other round of kinds without texts."""
    kinds = list(QUIET_KINDS)
    rounds, kind = index // len(kinds), kinds[index % len(kinds)]
    scene = make_scene("hard" if kind == "silent motion" else "standard", MEASURED[-1 - index])
    texts = Texts() if rounds % 2 else Texts(*describe(scene))
    return QuietClip(kind, scene.seed, QUIET_KINDS[kind](scene, views), texts)


def summarise_quiet(clips: Sequence[QuietScores]) -> dict[str, dict[str, float]]:
    """Measures of all clips, of each kind, and of the clips with and without texts; at least one clip."""
    groups = {
        "all": list(clips),
        **{kind: [each for each in clips if each.kind == kind] for kind in QUIET_KINDS},
        "with texts": [each for each in clips if each.has_texts],
        "without texts": [each for each in clips if not each.has_texts],
    }
    return {
        name: {
            "clips": len(group),
            "quiet": float(np.mean([each.loudest_db <= QUIET_DB for each in group])),
            "loudest_db": max(each.loudest_db for each in group),
            "peak_db": max(each.peak_db for each in group),
        }
        for name, group in groups.items()
        if group
    }


def _held(picture: Picture, views: Sequence[View]) -> Frames:
    """The frames of a picture that is held for the whole clip."""
    return {
        view.name: torch.from_numpy(np.stack([view.pixels(picture)] * view.count(CLIP_S))) for view in views
    }


def _still(scene: Scene, views: Sequence[View]) -> Frames:
    return _held(_middle(scene), views)


def _black(scene: Scene, views: Sequence[View]) -> Frames:
    return _held(np.zeros((scene.height, scene.width, 3), np.uint8), views)


def _plain(scene: Scene, views: Sequence[View]) -> Frames:
    return _held(np.full((scene.height, scene.width, 3), scene.background.wall, np.uint8), views)


def _silent_motion(scene: Scene, views: Sequence[View]) -> Frames:
    """Only what makes no sound moves in a room without sources, before a camera at rest."""
    return scene_frames(replace(scene, sources=(), jitter=0.0), views)


def _shaken(scene: Scene, views: Sequence[View]) -> Frames:
    """A still scene before a camera that shakes."""
    picture, rng = _middle(scene), np.random.default_rng([scene.seed, 47])
    phases = rng.uniform(0, 2 * np.pi, (2, len(_SHAKE_HZ)))
    frames = {}
    for view in views:
        times = np.arange(view.count(CLIP_S))[:, None, None] / view.fps
        waves = np.sin(2 * np.pi * np.array(_SHAKE_HZ) * times + phases)
        shifts = _SHAKE * scene.height * waves.mean(axis=2)  # (N, 2) in pixels
        frames[view.name] = torch.from_numpy(
            np.stack([view.pixels(_shifted(picture, float(y), float(x))) for y, x in shifts])
        )
    return frames


def _middle(scene: Scene) -> Picture:
    return render_frames(scene, [scene.frame_count // 2])[0]


def _shifted(picture: Picture, down: float, right: float) -> Picture:
    """A picture moved by fractions of pixels; its edges are continued."""
    moved = picture.astype(np.float64)
    for axis, shift in enumerate((down, right)):
        last = picture.shape[axis] - 1
        at = np.clip(np.arange(last + 1) - shift, 0, last)
        low = np.floor(at).astype(int)
        share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        upper = moved.take(np.minimum(low + 1, last), axis)
        moved = moved.take(low, axis) * (1 - share) + upper * share
    return moved.round().astype(np.uint8)


QUIET_KINDS: dict[str, Callable[[Scene, Sequence[View]], Frames]] = {
    "still picture": _still,
    "black": _black,
    "plain colour": _plain,
    "silent motion": _silent_motion,
    "shaking camera": _shaken,
}
