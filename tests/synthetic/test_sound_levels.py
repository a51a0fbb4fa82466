"""Levels of the true sound: how modes ring down, and what gain and loudness do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thinksound.synthetic.make import make_scene
from thinksound.synthetic.materials import MATERIALS
from thinksound.synthetic.modal import modes, strike
from thinksound.synthetic.scene import Curve, FloatArray, Scene
from thinksound.synthetic.seeds import JUDGES
from thinksound.synthetic.sound import SAMPLE_RATE, synthesise
from thinksound.synthetic.sustained import sustained

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ring", [0.5, 1.0])
def test_a_mode_falls_by_60_decibels_in_its_t60(ring):
    material = replace(MATERIALS["metal"], ratios=(1.0,), t60_s=1.0, click=0.0)
    sound = strike(material, 1.0, ring, 1.0, 1.0, SAMPLE_RATE, np.random.default_rng(0))
    window = round(0.02 * SAMPLE_RATE)
    early, late = (round(share * ring * SAMPLE_RATE) for share in (0.2, 0.7))
    fall = np.std(sound[early : early + window]) / np.std(sound[late : late + window])
    assert 20 * np.log10(fall) == pytest.approx(30, abs=1)
    assert sound[-1] == 0


def test_modes_that_a_sample_rate_does_not_hold_are_left_out():
    material = MATERIALS["metal"]
    every, _ = modes(material, 1.0, 0.5, 192_000)
    some, t60 = modes(material, 1.0, 0.5, 8000)
    assert len(every) == len(material.ratios)
    assert some.tolist() == [hz for hz in every.tolist() if hz < 3600]
    assert 0 < len(some) == len(t60) < len(every)


def louder(scene: Scene, factor: float) -> Scene:
    return replace(scene, sources=tuple(replace(each, gain=factor * each.gain) for each in scene.sources))


def test_gain_scales_a_sound_until_its_peak_is_nine_tenths():
    scene = make_scene("standard", JUDGES.start)
    quiet, half = (synthesise(louder(scene, factor)) for factor in (0.1, 0.05))
    assert 0 < np.abs(quiet).max() < 0.5
    assert np.abs(quiet - 2 * half).max() < 1e-6
    loud = synthesise(louder(scene, 100.0))
    assert np.abs(loud).max() == pytest.approx(0.9, abs=1e-6)


def steady(kind: str, control: float) -> FloatArray:
    """A second of a continuous source whose control does not change."""
    scenes = (make_scene("standard", seed) for seed in JUDGES)
    source = next(scene.sources[0] for scene in scenes if scene.sources[0].kind == kind)
    curve = Curve((control,) * 51)
    return sustained(source, curve, SAMPLE_RATE, SAMPLE_RATE, np.random.default_rng(0))


def test_a_fast_engine_is_louder():
    slow, fast = (np.std(steady("engine", hz)) for hz in (100.0, 400.0))
    assert fast / slow > 2.2


def test_a_fast_slide_is_brighter():
    slow, fast = (np.abs(np.fft.rfft(steady("slide", speed))) ** 2 for speed in (0.1, 1.0))
    high_slow, high_fast = (power[3000:].sum() / power.sum() for power in (slow, fast))
    assert high_fast > 2 * high_slow
