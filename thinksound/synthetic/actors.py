"""Drawing each kind of source as it looks at a given time."""

from __future__ import annotations

from math import cos, exp, pi, sin

import numpy as np

from .canvas import Canvas, shade
from .motion import (
    ball_height,
    falling,
    feet,
    impacts_until,
    raised,
    rotation,
    since_impact,
)
from .scene import Source

_METAL, _DARK, _SKIN = (120, 124, 132), (40, 38, 44), (225, 184, 150)
_WATER = (70, 130, 220)


def draw_source(canvas: Canvas, source: Source, t: float, floor: float) -> None:
    """Draw a source that stands on ``floor`` (in frame heights) as it looks at ``t`` seconds."""
    x = float(source.x.at(t))
    {
        "ball": _ball,
        "hammer": _hammer,
        "clock": _clock,
        "footsteps": _walker,
        "drops": _drops,
        "engine": _engine,
        "rain": _rain,
        "slide": _box,
    }[source.kind](canvas, source, t, x, floor)


def _ball(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    radius, height = 0.065 * source.size, ball_height(source, t)
    canvas.oval(x, floor + 0.012, radius * (1.1 - 0.7 * height), 0.012, _DARK)
    canvas.ball(x, floor - radius - height, radius, source.color)


def _hammer(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    half, height = 0.11 * source.size, 0.13 * source.size
    canvas.box(x, floor, half, height, source.color)
    top = floor - height
    # The handle turns about the hand; at 0 the head lies on the block.
    angle = raised(source, t) * 1.05
    side = 1 if x < 0.5 else -1
    length = source.reach * 0.8
    head, face = (0.075, 0.10)  # half its height, and how wide it is
    hand_x, hand_y = x + side * length / canvas.aspect, top - head
    end_x = hand_x - side * length * cos(angle) / canvas.aspect
    end_y = hand_y - length * sin(angle)
    canvas.line([(hand_x, hand_y), (end_x, end_y)], 0.03, (120, 82, 48))
    along = (-side * sin(angle), cos(angle))  # from the handle to the face
    across = (-side * cos(angle), -sin(angle))
    corners = [
        (
            end_x + (a * along[0] * head + b * across[0] * face / 2) / canvas.aspect,
            end_y + a * along[1] * head + b * across[1] * face / 2,
        )
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    canvas.polygon(corners, source.accent)
    canvas.disc(hand_x, hand_y, 0.035, _SKIN)
    _flash(canvas, source, t, x, top)


def _flash(canvas: Canvas, source: Source, t: float, x: float, y: float) -> None:
    """Draw dust that flies up from a blow, farther from a harder one."""
    since, count = since_impact(source, t), impacts_until(source, t)
    if since > 0.16:
        return
    strength = source.events[count - 1].strength
    for side in (-1, 1):
        for slope in (0.35, 0.9):
            far = (0.06 + 0.5 * since) * (0.5 + strength)
            place = (x + side * far / canvas.aspect, y - slope * far * 0.7 + 1.5 * since**2)
            canvas.disc(*place, 0.012 * (1 - since / 0.2), (250, 240, 205))


def _clock(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    radius, count = 0.15 * source.size, impacts_until(source, t)
    length = radius + 0.14
    top = floor - length - 0.08
    canvas.box(x, floor, radius * 0.9, floor - top, shade(source.color, 0.8))
    canvas.box(x, floor - 0.02, radius * 0.72, floor - top, _DARK)
    period = float(source.onsets[1] - source.onsets[0])
    swing = 0.3 * cos(pi * (t - float(source.onsets[0])) / period)  # farthest out at each tick
    bob = x + length * sin(swing) / canvas.aspect, top + length * cos(swing)
    canvas.line([(x, top), bob], 0.012, _METAL)
    canvas.disc(*bob, 0.035, source.color)
    canvas.disc(x, top, radius, source.color)
    canvas.disc(x, top, radius * 0.84, (246, 243, 232))
    for hour in range(12):
        angle = hour * pi / 6
        place = x + 0.7 * radius * sin(angle) / canvas.aspect, top - 0.7 * radius * cos(angle)
        canvas.disc(*place, radius * 0.05, _DARK)
    angle = count * pi / 6  # the hand jumps with every tick, and trembles
    since = since_impact(source, t)
    angle += 0.08 * exp(-since / 0.05) * sin(60 * since) if since < 1 else 0.0
    tip = x + 0.72 * radius * sin(angle) / canvas.aspect, top - 0.72 * radius * cos(angle)
    canvas.line([(x, top), tip], radius * 0.12, source.accent)


def _walker(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    tall = source.reach * 1.15
    canvas.polygon([(0, floor), (1, floor), (1, floor + 0.05), (0, floor + 0.05)], source.color)
    (near_x, near_lift), (far_x, far_lift) = feet(source, t)
    hip_x, hip_y = (near_x + far_x) / 2, floor - tall * 0.48
    lean = 1.0 if source.x.values[-1] > source.x.values[0] else -1.0
    shoulder = hip_y - tall * 0.30
    for foot_x, lift, tone in ((far_x, far_lift, 0.75), (near_x, near_lift, 1.0)):
        foot_y = floor - 0.015 - 0.13 * lift
        bend = 0.02 + 0.06 * lift
        knee = (hip_x + foot_x) / 2 + lean * bend / canvas.aspect, (hip_y + foot_y) / 2
        canvas.line([(hip_x, hip_y), knee, (foot_x, foot_y)], 0.035, shade((60, 70, 110), tone))
        shoe = foot_x + lean * 0.03 / canvas.aspect
        canvas.line([(foot_x, foot_y), (shoe, foot_y)], 0.03, shade(source.accent, tone))
    canvas.line([(hip_x, hip_y), (hip_x, shoulder)], 0.075, (150, 70, 70))
    reach = (far_x - near_x) * 0.6
    for hand in (reach, -reach):
        canvas.line([(hip_x, shoulder + 0.02), (hip_x + hand, hip_y)], 0.025, (130, 58, 58))
    canvas.disc(hip_x, shoulder - 0.055, 0.055, _SKIN)


def _drops(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    plate, high = floor - 0.05, source.reach + 0.05
    half = 0.14 * source.size
    tap = plate - high
    canvas.box(x, floor, 0.03, 0.05, shade(source.color, 0.7))
    canvas.box(x, plate + 0.03, half, 0.03, source.color)
    canvas.line([(x, tap - 0.12), (x, tap - 0.02)], 0.05, _METAL)
    for share, missed in falling(source, t):
        aside = (half + 0.06) * share / canvas.aspect if missed else 0.0
        y = tap + share * high
        canvas.polygon(
            [
                (x + aside, y - 0.07),
                (x + aside + 0.02 / canvas.aspect, y - 0.02),
                (x + aside - 0.02 / canvas.aspect, y - 0.02),
            ],
            _WATER,
        )
        canvas.disc(x + aside, y - 0.022, 0.022, _WATER)
    since = since_impact(source, t)
    if since < 0.22:
        strength = source.events[impacts_until(source, t) - 1].strength
        for k in range(-3, 4):
            far = k * (0.05 + 0.45 * since) * (0.3 + 0.4 * strength)
            up = (2.2 * since - 11 * since**2) * (0.2 + 0.4 * strength) * (1.3 - abs(k) / 4)
            canvas.disc(x + far / canvas.aspect, plate - 0.01 - up, 0.012, _WATER)


def _engine(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    assert source.control is not None
    speed = float(source.control.at(t)) / 400
    turn = 2 * pi * rotation(source, t)
    shake = 0.006 * speed * sin(7 * turn)
    half, height = 0.16 * source.size, 0.20 * source.size
    canvas.box(x, floor, half * 1.05, 0.03, _DARK)
    canvas.box(x, floor - 0.03 + shake, half, height, source.color)
    for k in range(4):
        canvas.box(
            x - (0.6 - 0.4 * k) * half / canvas.aspect,
            floor - 0.03 - height + shake,
            half * 0.12,
            0.05,
            _METAL,
        )
    pipe = x + 0.8 * half / canvas.aspect
    canvas.box(pipe, floor - 0.03 - height + shake, 0.018, 0.10, _DARK)
    puffs = np.random.default_rng(source.seed).random((5, 2))
    for phase, drift in puffs:
        age = (phase + turn / (2 * pi) * 0.5) % 1
        place = (
            pipe + (drift - 0.5) * 0.15 * age / canvas.aspect,
            floor - 0.15 - height - age * (0.08 + 0.3 * speed),
        )
        canvas.disc(*place, (0.01 + 0.035 * age) * (0.3 + speed), (200, 200, 204))
    radius, wheel_y = 0.11 * source.size, floor - 0.03 - height / 2 + shake
    canvas.disc(x, wheel_y, radius, _DARK)
    canvas.disc(x, wheel_y, radius * 0.82, shade(source.accent, 1.1))
    for k in range(3):
        angle = turn + k * 2 * pi / 3
        tip = x + radius * 0.8 * sin(angle) / canvas.aspect, wheel_y - radius * 0.8 * cos(angle)
        canvas.line([(x, wheel_y), tip], radius * 0.16, _DARK if k else (240, 230, 120))
    canvas.disc(x, wheel_y, radius * 0.2, _METAL)


def _rain(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    assert source.control is not None
    half, roof = 0.26, floor - 0.20
    wide = half / canvas.aspect
    canvas.box(x, floor, half * 0.85, 0.17, shade(source.color, 0.55))
    canvas.polygon(
        [(x - wide, roof + 0.05), (x + wide, roof + 0.05), (x + wide * 0.85, roof), (x - wide * 0.85, roof)],
        source.color,
    )
    rng = np.random.default_rng(source.seed)
    fall = 0.28  # seconds from the cloud to the roof
    for place, phase, rank in rng.random((90, 3)):
        cycle = (t / fall + phase) % 1
        if rank > source.control.at(max(0.0, t - cycle * fall)):
            continue
        drop, y = x + (2 * place - 1) * wide * 0.85, 0.16 + (roof - 0.16) * cycle
        canvas.line([(drop, y - 0.04), (drop, min(y, roof))], 0.007, _WATER)
        if cycle < 0.2:
            canvas.disc(drop, roof - 0.02 + 0.05 * cycle, 0.010, (190, 215, 245))
    gray = shade((175, 180, 190), 1.1 - 0.5 * float(source.control.at(t)))
    for k in range(5):
        canvas.oval(x + (k - 2) * 0.42 * wide, 0.12 - 0.02 * (k % 2), half * 0.34, 0.06, gray)


def _box(canvas: Canvas, source: Source, t: float, x: float, floor: float) -> None:
    assert source.control is not None
    speed, half, height = float(source.control.at(t)), 0.11 * source.size, 0.15 * source.size
    ahead = float(source.x.at(t + 0.02)) - float(source.x.at(t - 0.02))
    side = 1 if ahead >= 0 else -1
    canvas.box(x, floor, half, height, source.color)
    canvas.line(
        [
            (x - 0.7 * half / canvas.aspect, floor - 0.45 * height),
            (x + 0.7 * half / canvas.aspect, floor - 0.45 * height),
        ],
        0.025,
        source.accent,
    )
    for k in range(1, 4):  # dust and streaks behind it, longer with speed
        far = half + k * 0.05 * speed
        canvas.disc(x - side * far / canvas.aspect, floor - 0.012 * k, 0.018 * speed, (215, 205, 185))
        y = floor - height * (0.2 + 0.25 * k)
        if speed > 0.25:
            start, end = half + 0.03, half + 0.03 + 0.12 * speed
            canvas.line(
                [(x - side * start / canvas.aspect, y), (x - side * end / canvas.aspect, y)],
                0.008,
                (235, 235, 235),
            )
