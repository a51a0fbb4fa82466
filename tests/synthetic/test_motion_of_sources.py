"""Positions over time of sources whose events are given."""

from __future__ import annotations

from typing import Any

import pytest

from thinksound.synthetic.motion import ball_height, falling, feet, raised, rotation, since_impact
from thinksound.synthetic.scene import Curve, Event, Source


def source(*onsets: float, lead_s: float = 0.5, **more: Any) -> Source:
    """A source that goes right by 0.1 frame widths a second, with impacts of strengths 0.8, 0.4, 0.2 ..."""
    events = tuple(Event(onset, 0.8 / 2**index, 0.0) for index, onset in enumerate(onsets))
    way = Curve(tuple(0.1 * index / 50 for index in range(200)))
    usual: dict[str, Any] = {"kind": "ball", "material": "wood", "size": 1.0, "gain": 1.0, "x": way}
    colors: dict[str, Any] = {"color": (0, 0, 0), "accent": (0, 0, 0), "color_tells": False}
    return Source(**usual, **colors, reach=0.4, lead_s=lead_s, events=events, **more)


def test_a_ball_waits_falls_and_comes_to_rest():
    ball = source(1.0, 1.4)
    assert [ball_height(ball, t) for t in (0.0, 0.5)] == [0.4, 0.4]
    assert ball_height(ball, 0.75) == pytest.approx(0.3)  # half the time, a quarter of the way
    assert ball_height(ball, 1.5) > 0.01  # one more flight, of 0.2 s, whose end is not heard
    assert ball_height(ball, 1.61) == 0
    assert ball_height(source(1.0, 1.2), 1.25) == 0  # the next flight would be too short


def test_a_hammer_rises_by_its_strength_after_the_blow_before():
    hammer = source(1.0, 1.3)
    assert raised(hammer, 0.5 + 0.7 * 0.5) == pytest.approx(0.55 + 0.45 * 0.8)
    assert raised(hammer, 1.0) == pytest.approx(0, abs=1e-6)
    assert raised(hammer, 1.01) == 0  # the next blow comes within its lead, and still does not begin yet
    assert raised(hammer, 1.3 - 0.3 * 0.95 * 0.3) == pytest.approx(0.55 + 0.45 * 0.4)


def test_a_missed_blow_turns_around_and_is_laid_down():
    heights = [raised(source(3.0, misses=(1.0,)), t) for t in (0.85, 1.0, 1.1, 1.19, 1.21)]
    assert heights == sorted(heights, reverse=True)
    assert heights[1] > 0.4 > heights[3] > 0 == heights[4]


def test_drops_fall_faster_and_faster():
    drops = source(1.0, misses=(2.0,))
    assert falling(drops, 0.75) == [(0.25, False)]
    assert falling(drops, 1.75) == [(0.25, True)]
    assert falling(drops, 1.0) == falling(drops, 0.4) == []


def test_an_impact_counts_from_its_onset_on():
    assert since_impact(source(1.0), 0.99) == float("inf")
    assert [since_impact(source(1.0, 2.0), t) for t in (1.0, 1.25, 2.0)] == [0.0, 0.25, 0.0]


def test_one_foot_stands_while_the_other_swings_past_it():
    walker = source(1.0, 1.5, 2.0)
    (first, ground), (second, lift) = feet(walker, 1.375)
    assert (first, ground) == (pytest.approx(0.1), 0.0)  # where the walker was at the first step
    assert second == pytest.approx(0.25 * 0.05 + 0.75 * 0.15)
    assert lift > 0.3
    (first, lift), (second, ground) = feet(walker, 1.875)  # the feet change their parts
    assert (second, ground) == (pytest.approx(0.15), 0.0)
    assert first == pytest.approx(0.25 * 0.1 + 0.75 * 0.2)
    assert lift > 0.3
    assert feet(walker, 2.5) == [(pytest.approx(0.2), 0.0), (pytest.approx(0.15), 0.0)]


def test_a_wheel_turns_once_for_a_hundred_rotations_that_are_heard():
    assert rotation(source(control=Curve((200.0,) * 200)), 1.0) == pytest.approx(2.0)
    rising = Curve(tuple(100.0 + 2 * index for index in range(200)))  # 100 Hz more every second
    assert rotation(source(control=rising), 2.0) == pytest.approx(4.0, rel=0.01)
