"""Rendering the frames of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sin

import numpy as np
from numpy.typing import NDArray

from .actors import draw_source
from .canvas import Canvas, backdrop, shade
from .scene import Distractor, FloatArray, Scene

_BEHIND = {"rain": 0, "footsteps": 1}  # showers and floors are wide, so they are drawn first


def render_frames(scene: Scene, indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Frames, uint8 (N, H, W, 3); frame i shows the time i / fps. ``indices`` picks some; None is all."""
    indices = range(scene.frame_count) if indices is None else indices
    wall = backdrop(scene.background, scene.width, scene.height)
    shifts = _camera(scene)
    frames = np.empty((len(indices), scene.height, scene.width, 3), np.uint8)
    for place, index in enumerate(indices):
        t = index / scene.fps
        canvas = Canvas(wall, scene.width, scene.height, (float(shifts[index, 0]), float(shifts[index, 1])))
        for distractor in scene.distractors:
            _draw_distractor(canvas, distractor, t, scene.background.floor_y)
        for source in sorted(scene.sources, key=lambda each: _BEHIND.get(each.kind, 2)):
            draw_source(canvas, source, t, scene.background.floor_y)
        if scene.occluder:
            centre, width = scene.occluder
            post = shade(scene.background.wall, 0.45)
            left, right = centre - width / 2, centre + width / 2
            canvas.polygon([(left, -0.1), (right, -0.1), (right, 1.1), (left, 1.1)], post)
        frames[place] = canvas.pixels()
    return frames


def _camera(scene: Scene) -> FloatArray:
    """Offset of the camera at each frame, (N, 2) in frame heights: the mean of four slow waves."""
    rng = np.random.default_rng([scene.seed, 41])
    t = np.arange(scene.frame_count)[:, None, None] / scene.fps
    hz, phase = rng.uniform(0.3, 3.5, (2, 4)), rng.uniform(0, 2 * pi, (2, 4))
    return scene.jitter * np.sin(2 * pi * hz * t + phase).mean(axis=2)


def _draw_distractor(canvas: Canvas, distractor: Distractor, t: float, floor: float) -> None:
    phase = t / distractor.period_s
    if distractor.style == "drift":  # something that flies by, far away
        x = (distractor.x + 0.25 * phase) % 1.2 - 0.1
        y = distractor.y + 0.02 * sin(2 * pi * phase)
        half = distractor.size / canvas.aspect
        canvas.polygon(
            [(x - half, y - distractor.size / 2), (x + half, y), (x - half, y + distractor.size / 2)],
            distractor.color,
        )
    elif distractor.style == "swing":  # a lamp on its cord
        x, y = distractor.x + 0.12 * sin(pi * phase) / canvas.aspect, distractor.y
        canvas.line([(distractor.x, -0.05), (x, y)], 0.008, (60, 60, 60))
        canvas.ball(x, y, distractor.size * 0.8, distractor.color)
    else:  # a balloon that comes down, never touches the floor, and rises again
        height = 0.14 + 0.22 * (2 * (phase % 1) - 1) ** 2
        canvas.ball(distractor.x, floor - distractor.size - height, distractor.size, distractor.color)
