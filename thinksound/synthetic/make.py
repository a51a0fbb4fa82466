"""Draw scenes from seeds."""

from __future__ import annotations

import colorsys

import numpy as np

from ..errors import InputError
from ..request import SEED
from .kinds import ENGINE_HZ, KINDS
from .materials import MATERIALS, Color
from .scene import (
    CURVE_HZ,
    MIN_GAP_S,
    Background,
    Curve,
    Distractor,
    Event,
    FloatArray,
    Room,
    Scene,
    Source,
    pan_of,
)
from .seeds import SPLITS

MIN_DURATION_S, MAX_DURATION_S = 2.0, 30.0
_FPS = (12, 15, 20, 24, 25, 30, 50, 60)
_SIZES = ((160, 120), (192, 192), (256, 144), (240, 180), (180, 240), (320, 180), (320, 240))
_ROOMS = (
    Room("open air", 0.05, 0.0),
    Room("small room", 0.22, 0.10),
    Room("living room", 0.40, 0.14),
    Room("hall", 0.90, 0.18),
    Room("church", 1.60, 0.20),
)
_END_S = 0.15  # at the end of a clip, without impacts, so that each one is heard


CLIP_S = 4.0  # length of a clip, unless another is given


def make_scene(split: str, seed: int, duration_s: float = CLIP_S) -> Scene:
    """Draw a scene. Equal arguments give equal scenes.

    Args:
        split: ``standard`` (one source, nothing else moves) or ``hard`` (two sources, distractors that move
            silently, near misses, and in part of the clips a post in front and a camera that shakes).
        seed: 0 to 4294967295.
        duration_s: 2 to 30, rounded to whole frames.

    Raises:
        InputError: the split is unknown, or a number is out of range.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: use {' or '.join(SPLITS)}")
    seed = SEED.check("seed", seed)
    if not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        raise InputError(f"duration {duration_s:g} s: use {MIN_DURATION_S:g} to {MAX_DURATION_S:g} s")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    hard = split == "hard"
    width, height = _SIZES[rng.integers(len(_SIZES))]
    fps = _FPS[rng.integers(len(_FPS))]
    frames = round(duration_s * fps)
    hue = rng.random()
    background = Background(
        style=str(rng.choice(["plain", "gradient", "planks", "tiles", "speckles"])),
        wall=_paint(rng, hue, (0.05, 0.35), (0.55, 0.95)),
        floor=_paint(rng, hue + 0.3, (0.05, 0.35), (0.3, 0.6)),
        floor_y=float(rng.uniform(0.78, 0.88)),
        seed=int(rng.integers(2**31)),
    )
    room = _ROOMS[rng.integers(len(_ROOMS))]
    names = rng.choice(list(KINDS), size=1 + hard, replace=False)
    # Inside the central square, all that Synchformer sees of a frame, with room for the object itself.
    edge = max(0.22 if width < height else 0.14, 0.5 - 0.41 * height / width)
    spans = [(edge, 0.40), (0.60, 1 - edge)] if hard else [(edge, 1 - edge)]
    rng.shuffle(spans)
    sources = tuple(
        _source(rng, str(name), (span[0], span[1]), frames / fps, hard)
        for name, span in zip(names, spans, strict=True)
    )
    return Scene(
        split=split,
        seed=seed,
        duration_s=frames / fps,
        fps=fps,
        width=width,
        height=height,
        background=background,
        room=room,
        sources=sources,
        distractors=_distractors(rng) if hard else (),
        occluder=(float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.05, 0.11)))
        if hard and rng.random() < 0.6
        else None,
        jitter=float(rng.uniform(0.004, 0.015)) if hard and rng.random() < 0.7 else 0.0,
    )


def _paint(
    rng: np.random.Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(*value))
    return round(red * 255), round(green * 255), round(blue * 255)


def _source(
    rng: np.random.Generator, name: str, span: tuple[float, float], duration: float, hard: bool
) -> Source:
    kind = KINDS[name]
    material = str(rng.choice(kind.materials))
    tells = bool(rng.random() < 0.5)
    if tells:
        red, green, blue = (
            int(np.clip(c + rng.integers(-14, 15), 0, 255)) for c in MATERIALS[material].color
        )
        color = red, green, blue
    else:
        color = _paint(rng, rng.random(), (0.6, 0.95), (0.5, 0.95))
    accent = color if name == "ball" else _paint(rng, rng.random(), (0.5, 0.9), (0.25, 0.6))
    size, reach = float(rng.uniform(0.7, 1.4)), float(rng.uniform(0.38, 0.55))
    times = np.arange(round(duration * CURVE_HZ) + 2) / CURVE_HZ
    control, lead = None, 0.0
    onsets, strengths, misses = np.empty(0), np.empty(0), np.empty(0)
    if name == "ball":
        onsets, strengths, lead = _bounces(rng, duration)
        x = _line(rng, span, times, onsets[0] - lead, onsets[-1])
    elif name == "footsteps":
        step = rng.uniform(0.34, 0.7)
        onsets = np.arange(rng.uniform(0.2, 0.6), duration - _END_S, step)
        strengths, lead = rng.uniform(0.5, 1.0, len(onsets)), step
        x = _line(rng, span, times, 0.0, duration)
    elif name == "clock":
        onsets = np.arange(rng.uniform(0.1, 0.8), duration - _END_S, rng.uniform(0.35, 1.0))
        strengths = np.where(np.arange(len(onsets)) % 2, 0.7, 1.0) * rng.uniform(0.7, 1.0)
        x = np.full(len(times), rng.uniform(*span))
    elif kind.impulsive:  # hammer, drops
        lead = 0.5 if name == "hammer" else float(rng.uniform(0.3, 0.42))
        shortest = 0.4 if name == "hammer" else MIN_GAP_S + 0.04
        gaps = rng.uniform(shortest, shortest + rng.uniform(0.2, 0.8), 200)
        onsets = rng.uniform(0.3, 0.9) + np.concatenate([[0.0], np.cumsum(gaps)])
        onsets = onsets[onsets < duration - _END_S]
        strengths = rng.uniform(0.35, 1.0, len(onsets))
        missed = (rng.random(len(onsets)) < 0.25) & (np.arange(len(onsets)) > 0) & hard
        onsets, strengths, misses = onsets[~missed], strengths[~missed], onsets[missed]
        x = np.full(len(times), rng.uniform(*span))
    elif name == "slide":
        x, control = _slides(rng, span, times)
    else:
        low, high = (ENGINE_HZ[0] + 5, ENGINE_HZ[1] - 5) if name == "engine" else (0.08, 1.0)
        control = _wander(rng, times, low, high)
        x = (
            np.full(len(times), rng.uniform(*span))
            if name == "engine"
            else _line(rng, span, times, 0, duration)
        )
    path = _curve(x)
    return Source(
        kind=name,
        material=material,
        size=size,
        gain=float(rng.uniform(0.6, 1.0)) if hard else 1.0,
        color=color,
        accent=accent,
        color_tells=tells,
        x=path,
        reach=reach,
        lead_s=float(lead),
        events=tuple(
            Event(round(float(t), 5), round(float(s), 4), round(float(pan_of(path.at(t))), 4))
            for t, s in zip(onsets, strengths, strict=True)
        ),
        control=None if control is None else _curve(control),
        misses=tuple(round(float(t), 5) for t in misses),
        seed=int(rng.integers(2**31)),
    )


def _curve(values: FloatArray) -> Curve:
    return Curve(tuple(round(float(value), 5) for value in values))


def _bounces(rng: np.random.Generator, duration: float) -> tuple[FloatArray, FloatArray, float]:
    """Onsets, strengths and fall time of a ball; each flight lasts a fixed share of the one before."""
    ratio, gap = rng.uniform(0.68, 0.9), rng.uniform(0.5, 0.95)
    lead = gap / (2 * ratio)
    onset = lead + rng.uniform(0.1, 0.5)
    onsets, speeds, speed = [], [], rng.uniform(0.75, 1.0)
    while onset < duration - _END_S:
        onsets.append(onset)
        speeds.append(speed)
        if gap < MIN_GAP_S:
            break
        onset, speed, gap = onset + gap, speed * ratio, gap * ratio
    return np.array(onsets), np.array(speeds), lead


def _line(
    rng: np.random.Generator, span: tuple[float, float], times: FloatArray, start: float, end: float
) -> FloatArray:
    """Positions on a steady way between two places, at rest before ``start`` and after ``end``."""
    middle, half = (span[0] + span[1]) / 2, (span[1] - span[0]) / 2
    side = rng.choice([-1, 1])
    ends = middle - side * half * rng.uniform(0.3, 1.0), middle + side * half * rng.uniform(0.3, 1.0)
    return np.interp(times, [start, end], ends)


def _wander(rng: np.random.Generator, times: FloatArray, low: float, high: float) -> FloatArray:
    """A smooth curve through random levels, about one per second, that spans ``low`` to ``high`` in full."""
    knots = np.arange(0, times[-1] + 2.0, rng.uniform(0.8, 1.4))
    levels = rng.random(len(knots))
    place = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(knots) - 2)
    u = (times - knots[place]) / (knots[place + 1] - knots[place])
    u = u * u * (3 - 2 * u)
    path = levels[place] * (1 - u) + levels[place + 1] * u
    return low + (high - low) * (path - path.min()) / np.ptp(path)


def _slides(
    rng: np.random.Generator, span: tuple[float, float], times: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Position and speed (0 to 1) of a box pushed to and fro, at rest between the pushes."""
    velocity = np.zeros(len(times))
    start, sign = rng.uniform(0.1, 0.5), rng.choice([-1, 1])
    while start < times[-1] - 0.3:
        length = rng.uniform(0.5, 1.1)
        inside = (times >= start) & (times < start + length)
        velocity[inside] = (
            sign * rng.uniform(0.45, 1.0) * np.sin(np.pi * (times[inside] - start) / length) ** 2
        )
        start, sign = start + length + rng.uniform(0.15, 0.6), -sign
    x = np.cumsum(velocity) / CURVE_HZ
    scale = (span[1] - span[0]) * 0.9 / max(float(np.ptp(x)), 1e-6)
    x = span[0] + 0.05 * (span[1] - span[0]) + (x - x.min()) * scale
    return x, np.abs(velocity) / np.abs(velocity).max()


def _distractors(rng: np.random.Generator) -> tuple[Distractor, ...]:
    styles = rng.choice(["drift", "swing", "hover"], size=rng.integers(1, 3), replace=False)
    return tuple(
        Distractor(
            style=str(style),
            color=_paint(rng, rng.random(), (0.5, 0.9), (0.4, 0.9)),
            size=float(rng.uniform(0.04, 0.08)),
            x=float(rng.uniform(0.1, 0.9)),
            y=float(rng.uniform(0.15, 0.35)),
            period_s=float(rng.uniform(0.7, 2.0)),
        )
        for style in styles
    )
