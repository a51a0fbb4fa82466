"""Onsets: the detector finds those of synthetic clips, and agreement is counted correctly."""

from __future__ import annotations

import numpy as np
import pytest

from thinksound.evaluation.made.onsets import (
    RESOLUTION_S,
    OnsetMatch,
    detect_onsets,
    match_onsets,
    pick_peaks,
    total,
    true_onsets,
)
from thinksound.evaluation.made.spectra import RATE, Waveform, magnitudes, resample
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.scene import Scene
from thinksound.synthetic.seeds import JUDGES
from thinksound.synthetic.sound import synthesise

pytestmark = pytest.mark.slow


def impulsive_scenes(count):
    seeds = iter(JUDGES)
    found: list[Scene] = []
    while len(found) < count:
        scene = make_scene("standard", next(seeds))
        if scene.sources[0].events:
            found.append(scene)
    return found


def agreement(rate, tolerance, change=lambda waveform: waveform):
    return total(
        match_onsets(true_onsets(scene), detect_onsets(change(synthesise(scene, rate)), rate), tolerance)
        for scene in impulsive_scenes(30)
    )


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_every_onset_of_true_single_sources_is_found_within_20_ms_and_no_other(rate):
    counts = agreement(rate, 0.02)
    assert counts.true > 150
    assert counts.f1 >= 0.995


def test_noise_and_level_change_no_onset():
    rng = np.random.default_rng(0)

    def worse(waveform):
        return (0.05 * waveform + 1e-4 * rng.standard_normal(waveform.shape)).astype(np.float32)

    assert agreement(RATE, 0.02, worse).f1 >= 0.99


def test_a_delayed_sound_does_not_agree():
    assert agreement(RATE, 0.05, lambda waveform: np.roll(waveform, round(0.08 * RATE), axis=1)).f1 < 0.3


def test_silence_and_a_steady_tone_hold_no_onset():
    assert len(detect_onsets(np.zeros((2, RATE), dtype=np.float32), RATE)) == 0
    t = np.arange(3 * RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32) * np.minimum(t, 1)
    found = detect_onsets(np.stack([tone, tone]).astype(np.float32), RATE)
    assert len(found[found > 0.1]) == 0


def steady_second_by_second(*levels_db: float) -> Waveform:
    """A tone that holds every multiple of 125 Hz, with these levels; its bands are steady in between."""
    t = np.arange(len(levels_db) * RATE) / RATE
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 63)
    tone = sum(np.sin(2 * np.pi * 125 * (k + 1) * t + phase) for k, phase in enumerate(phases)) / 63
    sound = (tone * 10 ** (np.repeat(levels_db, RATE) / 20)).astype(np.float32)
    return np.stack([sound, sound])


@pytest.mark.parametrize(
    ("levels_db", "is_onset"),
    [
        ((-2.0, -2.0, 0.0, 0.0), False),
        ((-3.5, -3.5, 0.0, 0.0), True),
        ((0.0, -300.0, -18.0, -18.0), True),
        ((0.0, -300.0, -34.0, -34.0), False),  # what is so much quieter than the loudest is not heard
    ],
)
def test_an_onset_is_a_rise_of_three_decibels_of_what_is_not_too_quiet(levels_db, is_onset):
    found = detect_onsets(steady_second_by_second(*levels_db), RATE)
    assert found[found > 0.5].tolist() == ([pytest.approx(2.0, abs=0.01)] if is_onset else [])


def test_pairs_are_as_many_as_can_be_and_each_is_used_once():
    # The nearest partner of 1.00 is 1.04, but then 1.08 would have none.
    assert match_onsets([1.00, 1.08], [0.96, 1.04], 0.05) == OnsetMatch(hits=2, true=2, found=2)
    assert match_onsets([1.0], [0.99, 1.01], 0.05) == OnsetMatch(hits=1, true=1, found=2)
    assert match_onsets([1.0, 2.0], [2.0, 3.0], 0.05) == OnsetMatch(hits=1, true=2, found=2)
    assert match_onsets([1.0], [1.051], 0.05).hits == 0


def test_scores_follow_their_definitions():
    counts = OnsetMatch(hits=3, true=4, found=6)
    assert counts.precision == 0.5
    assert counts.recall == 0.75
    assert counts.f1 == pytest.approx(2 * 0.5 * 0.75 / (0.5 + 0.75))
    assert OnsetMatch(0, 0, 0).f1 == 1.0
    assert OnsetMatch(0, 5, 0).f1 == 0.0
    # A clip of one event weighs a tenth of a clip of ten.
    assert total([OnsetMatch(10, 10, 10), OnsetMatch(0, 1, 1)]).f1 == pytest.approx(20 / 22)


def test_peaks_stand_out_and_the_highest_of_near_ones_counts():
    curve = np.zeros(200)
    curve[[50, 55, 120]] = 3.0, 5.0, 4.0
    assert pick_peaks(curve, 0.01, 1.0, 0.1).tolist() == pytest.approx([0.55, 1.20])
    assert len(pick_peaks(curve, 0.01, 6.0, 0.1)) == 0
    assert len(pick_peaks(curve + 10, 0.01, 4.5, 0.1)) == 1


def test_the_truth_of_two_sources_keeps_what_can_be_told_apart():
    for seed in range(JUDGES.start, JUDGES.start + 40):
        scene = make_scene("hard", seed)
        every = np.sort(np.concatenate([source.onsets for source in scene.sources]))
        kept = true_onsets(scene)
        assert set(kept) <= set(every)
        if len(kept):
            assert (np.diff(kept) >= RESOLUTION_S).all()
            assert all(np.min(each - kept[kept <= each]) < RESOLUTION_S for each in every)


def test_resampling_keeps_what_both_rates_hold_and_drops_the_rest():
    t = np.arange(44_100) / 44_100
    low, high = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 10_000 * t)
    result = resample(np.stack([low, low + high]).astype(np.float32), 44_100)
    assert result.shape == (2, RATE)
    expected = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    inside = slice(200, -200)
    assert np.abs(result[:, inside] - expected[inside]).max() < 1e-3


def test_a_sine_shows_half_of_its_amplitude_in_its_bin():
    sound = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    spectrum = magnitudes(sound)[100]
    assert spectrum.argmax() == 1000 / RATE * 512
    assert spectrum.max() == pytest.approx(0.5, rel=1e-3)
