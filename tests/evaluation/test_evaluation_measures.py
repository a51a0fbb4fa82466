"""Measures other than onsets: closed forms, and true sounds against damaged ones."""

from __future__ import annotations

import numpy as np
import pytest

from thinksound.evaluation.made.measures import (
    TRACK_S,
    Moments,
    attack_floors,
    buzz_db,
    decay_times,
    flatness_db,
    impact_tones,
    level,
    level_correlation,
    loudest_dbfs,
    pan,
    pan_moments,
    peak_dbfs,
    pitch_agreement,
    pitch_error_cents,
    pitch_track,
    tones_found,
)
from thinksound.evaluation.made.spectra import RATE
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.scene import pan_of
from thinksound.synthetic.seeds import JUDGES
from thinksound.synthetic.sound import constant_power, synthesise

pytestmark = pytest.mark.slow

LATENT_RATE = 31.25
T = np.arange(4 * RATE) / RATE


def both(sound):
    return np.stack([sound, sound]).astype(np.float32)


def noise(seed=0, samples=4 * RATE):
    return np.random.default_rng(seed).standard_normal((2, samples)).astype(np.float32)


def scenes_of(kind, count):
    found = []
    for seed in JUDGES:
        scene = make_scene("standard", seed)
        if scene.sources[0].kind == kind:
            found.append(scene)
            if len(found) == count:
                return found
    raise AssertionError


def test_correlation_is_pearsons_and_adds_up_over_clips():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300)
    y = 0.6 * x + rng.standard_normal(300)
    weights = rng.integers(1, 4, 300)
    whole = Moments.of(x, y, weights.astype(float))
    repeated = np.repeat(x, weights), np.repeat(y, weights)
    assert whole.correlation == pytest.approx(np.corrcoef(*repeated)[0, 1], abs=1e-9)
    parts = [
        Moments.of(x[part], y[part], weights[part].astype(float)) for part in (slice(0, 100), slice(100, 300))
    ]
    assert sum(parts, Moments()).correlation == pytest.approx(whole.correlation, abs=1e-9)
    assert Moments.of(x, np.ones(300), np.ones(300)).correlation == 0
    assert Moments().correlation == 0


def test_a_level_is_the_rms_and_follows_the_truth_whatever_the_gain():
    assert level(both(0.5 * np.sin(2 * np.pi * 500 * T)))[50] == pytest.approx(0.5, rel=0.02)
    swell = np.sin(np.pi * T / 4) ** 2
    sound, true = noise(0) * swell, noise(1) * swell
    assert level_correlation(0.01 * sound, true) > 0.97
    assert level_correlation(noise(0) * (1 - swell), true) < -0.9
    assert level_correlation(np.zeros_like(true), true) == 0


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_loudest_tenth_of_a_second_and_the_peak_are_in_dbfs(rate):
    t = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * 500 * t)
    assert loudest_dbfs(both(tone), rate) == pytest.approx(-3.01, abs=0.02)
    assert loudest_dbfs(both(0.01 * tone), rate) == pytest.approx(-43.01, abs=0.02)
    burst = both(np.where((t >= 1) & (t < 1.05), tone, 0))  # half of the window
    assert loudest_dbfs(burst, rate) == pytest.approx(-6.02, abs=0.05)
    assert peak_dbfs(0.1 * burst) == pytest.approx(-20, abs=0.02)
    assert peak_dbfs(-0.1 * burst) == peak_dbfs(0.1 * burst)
    assert loudest_dbfs(0 * burst, rate) == peak_dbfs(0 * burst) == -120


def test_a_level_is_smoothed_over_a_fifth_of_a_second():
    burst = np.where((T >= 2) & (T < 2.02), np.sin(2 * np.pi * 500 * T), 0)
    heard = np.flatnonzero(level(both(burst)) > 1e-6)
    assert heard.tolist() == list(range(95, 106))  # 11 values, 20 ms apart, around the burst in the 100th


def test_a_level_follows_the_truth_however_quiet_the_sound_is():
    swell = np.sin(np.pi * T / 4) ** 2
    assert level_correlation(1e-6 * noise(0) * swell, noise(1) * swell) > 0.97


@pytest.mark.parametrize("kind", ["engine", "rain", "slide"])
def test_true_levels_follow_the_controls_and_those_of_another_clip_do_not(kind):
    scenes = scenes_of(kind, 4)
    true = [synthesise(scene, RATE) for scene in scenes]
    for scene, waveform in zip(scenes, true, strict=True):
        times = (np.arange(len(level(waveform))) + 0.5) * TRACK_S
        control = scene.sources[0].control.at(times)
        assert Moments.of(level(waveform), control, np.ones(len(times))).correlation > 0.8
    assert np.mean([level_correlation(true[i - 1], true[i]) for i in range(4)]) < 0.6


@pytest.mark.parametrize("place", [-1.0, -0.4, 0.0, 0.7])
def test_a_pan_is_read_back_by_the_law_that_set_it(place):
    panned = (constant_power(place)[:, None] * noise()[0]).astype(np.float32)
    assert pan(panned)[20] == pytest.approx(place, abs=1e-5)


def test_true_pans_follow_the_picture_and_swapped_channels_contradict_it():
    moving = scenes_of("ball", 6) + scenes_of("footsteps", 6)
    followed = swapped = Moments()
    for scene in moving:
        true = synthesise(scene, RATE)
        times = (np.arange(len(level(true))) + 0.5) * TRACK_S
        truth = np.asarray(pan_of(scene.sources[0].x.at(times)))
        followed += Moments.of(pan(true), truth, level(true) / level(true).sum())
        swapped += pan_moments(true[::-1], true)
    assert followed.correlation > 0.9
    assert swapped.correlation == pytest.approx(-1, abs=1e-6)


def test_noise_does_not_buzz_and_repeated_noise_does():
    for seed in range(5):
        assert abs(buzz_db(noise(seed), LATENT_RATE)) < 3
    assert buzz_db(np.tile(noise(0, 512), 125), LATENT_RATE) > 25
    assert buzz_db(np.zeros((2, RATE), dtype=np.float32), LATENT_RATE) == 0


def test_a_buzz_counts_at_the_latent_rate_only():
    def pulsing(rate):
        return (noise() * (1 + 0.3 * np.sin(2 * np.pi * rate * T))).astype(np.float32)

    assert buzz_db(pulsing(LATENT_RATE), LATENT_RATE) > 8
    assert buzz_db(pulsing(20.0), LATENT_RATE) < 3
    assert buzz_db(pulsing(21.5), 21.5) > 8
    assert buzz_db(pulsing(2 * LATENT_RATE), LATENT_RATE) > 5  # a multiple


def test_flatness_of_noise_is_its_closed_form_and_lines_are_not_flat():
    # The geometric mean of exponentially distributed powers is exp(-Euler's constant) of their mean.
    assert flatness_db(noise()) == pytest.approx(-10 * np.euler_gamma / np.log(10), abs=0.1)
    assert flatness_db(0.01 * noise()) == pytest.approx(flatness_db(noise()), abs=1e-3)
    assert flatness_db(np.tile(noise(0, 512), 125)) < -20
    assert flatness_db(np.zeros((2, RATE), dtype=np.float32)) == 0


def test_what_is_quieter_by_more_than_40_db_does_not_count_for_flatness():
    lines = np.tile(noise(0, 512), 125)
    for level_of_lines, least, most in ((1e-3, -3.5, -2), (1.0, -40, -10)):
        assert least < flatness_db(np.where(T < 2, noise(), level_of_lines * lines)) < most


@pytest.mark.parametrize("t60", [0.15, 0.6, 1.2])
def test_a_ring_down_takes_a_third_of_its_t60_to_fall_by_20_db(t60):
    ring = np.where(T >= 1, np.sin(2 * np.pi * 900 * T) * 10 ** (-3 * (T - 1) / t60), 0)
    found = decay_times(both(ring), np.array([1.0]), np.array([1.0]))
    assert found == pytest.approx([t60 / 3], abs=0.02)


def test_a_ring_down_is_measured_from_the_peak_that_follows_its_onset():
    """A quiet click at the onset; 80 ms later comes the peak, which falls by 20 dB in 0.2 s."""
    ring = np.where(T >= 1.08, np.sin(2 * np.pi * 900 * T) * 10 ** (-3 * (T - 1.08) / 0.6), 0)
    click = np.where((T >= 1) & (T < 1.005), 0.01 * np.sin(2 * np.pi * 900 * T), 0)
    assert decay_times(both(ring + click), np.array([1.0]), np.array([1.0])) == pytest.approx([0.2], abs=0.02)


def test_a_ring_down_that_lasts_gets_its_span_and_silence_gets_none():
    steady = both(np.sin(2 * np.pi * 900 * T))
    assert decay_times(steady, np.array([1.0]), np.array([0.5])) == pytest.approx([0.5], abs=0.06)
    assert decay_times(np.zeros_like(steady), np.array([1.0]), np.array([0.5])).tolist() == [0]


def struck(onset, *tones, t60=0.5):
    """Partials as (Hz, amplitude) that start together and decay together."""
    ring = sum(amplitude * np.cos(2 * np.pi * hz * (T - onset)) for hz, amplitude in tones)
    return np.where(onset <= T, ring * 10 ** (-3 * (T - onset) / t60), 0)


@pytest.mark.parametrize("before_db", [-30.0, -60.0])
def test_an_attack_floor_is_the_level_before_the_peak(before_db):
    hiss = 10 ** (before_db / 20) * np.random.default_rng(0).standard_normal(len(T))
    tone = struck(1.0, (900, np.sqrt(2)), t60=2.0)  # RMS 1 at its peak, as the hiss without its factor
    assert attack_floors(both(tone + hiss), np.array([1.0])) == pytest.approx([before_db], abs=1)


def test_an_attack_floor_ends_at_80_db_and_is_0_without_an_attack():
    assert attack_floors(both(struck(1.0, (900, 1.0))), np.array([1.0])) == pytest.approx([-80])
    assert attack_floors(both(0 * T), np.array([1.0])).tolist() == [0]
    assert attack_floors(both(np.sin(2 * np.pi * 900 * T)), np.array([1.0])) == pytest.approx([0], abs=0.1)


def test_tones_are_found_strongest_first_and_none_more_than_40_db_below_the_strongest():
    sound = struck(1.0, (500, 0.1), (1_400, 0.3), (3_000, 1.0), (5_000, 0.03), (6_500, 0.008))
    (tones,) = impact_tones(both(sound), np.array([1.0]))
    assert tones == pytest.approx([3_000, 1_400, 500, 5_000], rel=0.005)


def test_six_tones_count_and_near_ones_are_one():
    many = [(hz, 1 - 0.1 * place) for place, hz in enumerate((400, 800, 1_600, 2_400, 3_600, 5_000, 7_000))]
    (tones,) = impact_tones(both(struck(1.0, *many)), np.array([1.0]))
    assert tones == pytest.approx([hz for hz, _ in many[:6]], rel=0.01)
    (tones,) = impact_tones(both(struck(1.0, (3_000, 1.0), (3_100, 0.7))), np.array([1.0]))
    assert tones == pytest.approx([3_000], rel=0.005)
    (tones,) = impact_tones(both(struck(1.0, (3_000, 1.0), (3_300, 0.7))), np.array([1.0]))
    assert tones == pytest.approx([3_000, 3_300], rel=0.005)


def test_tones_are_those_of_the_impact_wherever_its_peak_is():
    sound = struck(1.0, (700, 1.0)) + struck(2.04, (1_900, 0.1))
    assert [list(each) for each in impact_tones(both(sound), np.array([1.0, 2.0]))] == [
        [pytest.approx(700, rel=0.005)],
        [pytest.approx(1_900, rel=0.005)],
    ]


def test_noise_and_silence_have_no_tones():
    rng = np.random.default_rng(0)
    bursts = rng.standard_normal(len(T)) * np.exp(-(T % 0.4) / 0.03)
    onsets = np.arange(0.4, 3.8, 0.4)
    found = [len(each) for each in impact_tones(both(bursts), onsets)]
    assert np.mean(found) < 0.5
    assert [len(each) for each in impact_tones(both(0 * T), onsets)] == [0] * len(onsets)


def test_a_tone_is_found_within_5_percent():
    true = np.array([1_000.0, 2_000.0, 4_000.0])
    assert tones_found(true, true) == 3
    assert tones_found(true, np.array([1_049.0, 1_899.0, 4_199.0])) == 2
    assert tones_found(true, np.array([1_000.0])) == 1
    assert tones_found(true, np.empty(0)) == tones_found(np.empty(0), true) == 0


def test_a_pitch_error_is_the_median_in_cents():
    true = np.full(5, 200.0)
    found = true * 2 ** (np.array([0.0, 10.0, -20.0, 30.0, 1_200.0]) / 1_200)
    assert pitch_error_cents(found, true) == pytest.approx(20)


def test_pitch_is_found_whatever_its_harmonics_and_followed_when_it_glides():
    def tone(hz, shares):
        phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, T.shape)) / RATE
        return both(sum(share * np.sin(k * phase) for k, share in enumerate(shares, 1)))

    for hz in (110.0, 197.0, 390.0):
        for shares in ([1.0], [1.0, 0.5, 0.33], [0.6, 1.0, 0.5, 0.4], [0.2, 0, 0.4, 0.7, 0.9, 1.0]):
            assert pitch_agreement(pitch_track(tone(hz, shares), 90, 440), np.full(201, hz)) > 0.97
    glide = np.linspace(120, 380, len(T))
    found = pitch_track(tone(glide, [1.0, 0.5, 0.33]), 90, 440)
    true = np.interp(np.arange(len(found)) * TRACK_S, T, glide)
    assert pitch_agreement(found, true) > 0.95
    assert pitch_agreement(found * 2, true) == 0
    assert pitch_agreement(np.array([104.9, 105.1]), np.array([100.0, 100.0])) == 0.5


def test_true_engines_are_in_tune_and_other_engines_are_not():
    scenes = scenes_of("engine", 4)
    tracks = [pitch_track(synthesise(scene, RATE), 90, 440) for scene in scenes]
    truths = [scene.sources[0].control.at(np.arange(len(tracks[0])) * TRACK_S) for scene in scenes]
    own = [pitch_agreement(track, truth) for track, truth in zip(tracks, truths, strict=True)]
    other = [pitch_agreement(tracks[i - 1], truths[i]) for i in range(4)]
    assert min(own) > 0.9
    assert max(other) < 0.5
