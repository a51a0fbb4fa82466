"""Positions over time, from the same events and curves that the sound follows."""

from __future__ import annotations

import numpy as np

from .scene import MIN_GAP_S, FloatArray, Source


def ball_height(source: Source, t: float) -> float:
    """Height of a ball over the floor in frame heights: free fall between its bounces."""
    onsets = source.onsets
    gravity = 2 * source.reach / source.lead_s**2
    if t < onsets[0]:
        fallen = max(0.0, t - (onsets[0] - source.lead_s))
        return float(source.reach - gravity * fallen**2 / 2)
    index = int(np.searchsorted(onsets, t, side="right")) - 1
    if index + 1 < len(onsets):
        flight = float(onsets[index + 1] - onsets[index])
    else:  # its next bounce would lie beyond the clip's end
        flight = _next_flight(source, onsets)
    since = t - float(onsets[index])
    return float(gravity * since * (flight - since) / 2) if since < flight else 0.0


def _next_flight(source: Source, onsets: FloatArray) -> float:
    if len(onsets) < 2:
        return source.lead_s
    ratio = source.events[-1].strength / source.events[-2].strength
    flight = float(onsets[-1] - onsets[-2]) * ratio
    return flight if flight >= MIN_GAP_S else 0.0


def raised(source: Source, t: float) -> float:
    """How far a hammer is raised, 0 (on the block) to 1.

    It rises slowly and falls fast, fastest at the impact. A miss turns around above the block.
    """
    moves = [(event.onset_s, event.strength, False) for event in source.events]
    moves = sorted(moves + [(miss, 0.8, True) for miss in source.misses])
    height, before = 0.0, -source.lead_s
    for time, strength, missed in moves:
        lead, before = min(source.lead_s, 0.95 * (time - before)), time  # the previous blow ends first
        u = 1 - (time - t) / lead  # 0 at the start of the movement, 1 at the impact
        if not 0 <= u <= (1.4 if missed else 1):
            continue
        up = min(u / 0.7, 1.0)
        rise = up * up * (3 - 2 * up) if u < 0.7 else 1 - ((u - 0.7) / 0.3) ** 2
        if missed and u >= 0.7:
            turn = (u - 0.7) / 0.7  # 0 to 1; stays above 0.4 until it is laid down gently
            rise = 0.4 + 0.6 * (1 - turn) ** 2 if turn < 0.6 else 0.496 * (1 - turn) / 0.4
        height = max(height, (0.55 + 0.45 * strength) * rise)
    return height


def falling(source: Source, t: float) -> list[tuple[float, bool]]:
    """Drops in the air, each as (share of the way fallen, whether it falls beside the plate)."""
    drops = []
    for time, missed in [(e.onset_s, False) for e in source.events] + [(m, True) for m in source.misses]:
        u = 1 - (time - t) / source.lead_s
        if 0 <= u < (1.15 if missed else 1):
            drops.append((u * u, missed))
    return drops


def since_impact(source: Source, t: float) -> float:
    """Seconds since the last impact; infinity before the first."""
    onsets = source.onsets
    index = int(np.searchsorted(onsets, t, side="right")) - 1
    return float(t - onsets[index]) if index >= 0 else float("inf")


def impacts_until(source: Source, t: float) -> int:
    return int(np.searchsorted(source.onsets, t, side="right"))


def feet(source: Source, t: float) -> list[tuple[float, float]]:
    """Two feet as (x in frame widths, lift 0 to 1): one stands while the other swings to its next step."""
    onsets, step = source.onsets, source.lead_s
    count = impacts_until(source, t)
    before = onsets[count - 1] if count else onsets[0] - step
    u = float(np.clip((t - before) / step, 0, 1)) if count < len(onsets) else 1.0

    def landing(index: int) -> float:
        return float(source.x.at(float(onsets[0]) + index * step))

    stands = landing(count - 1)
    if count >= len(onsets):  # past the last step heard: both feet stay
        pair = [(stands, 0.0), (landing(count - 2), 0.0)]
    else:
        swing = landing(count - 2) * (1 - u) + landing(count) * u
        pair = [(stands, 0.0), (swing, float(np.sin(np.pi * u**0.8)))]
    return pair if count % 2 else pair[::-1]


def rotation(source: Source, t: float) -> float:
    """Turns of an engine's wheel since the start, a hundredth of the rotations that are heard."""
    assert source.control is not None
    steps = np.arange(0, t, 0.01)
    return float(source.control.at(steps).sum() * 0.01 / 100) if len(steps) else 0.0
