"""Seconds to counts, against the reference table."""

from __future__ import annotations

import json

import pytest

from thinksound.encoders import views
from thinksound.families.find import family_of
from thinksound.models.synchformer import sync_segment_count
from thinksound.presets import LIGHT, MMAUDIO, PRESETS, TINY

PUBLISHED = family_of(LIGHT).sound


def test_nine_seconds_are_the_published_lengths():
    assert views.clip_frame_count(9.0) == 72
    assert views.sync_feature_count(9.0) == 216
    assert PUBLISHED.latent_length(9.0) == 194
    assert (PUBLISHED.sample_rate, PUBLISHED.hop) == (44_100, 2048)


def test_all_reference_durations(parity):
    rows = json.loads((parity / "features" / "lengths.json").read_text())
    assert len(rows) > 20
    for row in rows:
        duration, wanted = row["duration"], row["recommended"]
        frames = views.sync_frame_count(duration)
        got = {
            "clip": views.clip_frame_count(duration),
            "sync_frames": frames,
            "segments": sync_segment_count(frames),
            "sync": views.sync_feature_count(duration),
            "latent": PUBLISHED.latent_length(duration),
            "samples": PUBLISHED.latent_length(duration) * PUBLISHED.hop,
        }
        assert got == {key: wanted[key] for key in got}, duration


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_generated_sound_is_as_long_as_the_video_to_a_latent(preset):
    sound = family_of(preset).sound
    for duration in (hundredths / 100 for hundredths in range(10, 2000, 7)):
        gap = sound.sample_count(duration) - sound.latent_length(duration) * sound.hop
        if preset.family == "mmaudio":  # latents cover the video
            assert -sound.hop <= gap <= 1
        else:  # rounded to nearest
            assert abs(gap) <= sound.hop // 2 + 1


def test_mmaudio_has_the_lengths_of_the_original(parity):
    sounds = {preset.size: family_of(preset).sound for preset in MMAUDIO}
    for text, counts in json.loads((parity / "mmaudio" / "lengths_mmaudio.json").read_text()).items():
        duration = float(text)
        for size, rate in (("small-16k", "16k"), ("large-44k-v2", "44k")):
            latents, clip, sync, samples = counts[rate]
            assert sounds[size].latent_length(duration) == latents
            assert latents * sounds[size].hop == samples
            assert views.clip_frame_count(duration) == clip
            # The original has no synchronisation below one segment of 0.64 s; here there is always one.
            assert views.sync_feature_count(duration) == max(sync, 8)


def test_the_tiny_model_has_a_latent_every_32_milliseconds():
    sound = family_of(TINY).sound
    assert (sound.sample_rate, sound.hop) == (16_000, 512)
    assert sound.latent_length(4.0) == 125
    assert sound.sample_count(4.0) == 64_000


@pytest.mark.parametrize("preset", [LIGHT, TINY], ids=lambda preset: preset.name)
@pytest.mark.parametrize("duration", [0.1, 1.0, 9.0])
def test_conditions_have_the_lengths_of_their_frames(preset, duration):
    shapes = {each.name: each.shape(duration) for each in family_of(preset).conditions}
    lengths = {name: rows for name, (rows, _) in shapes.items()}
    assert lengths == {
        "clip_features": views.clip_frame_count(duration),
        "sync_features": views.sync_feature_count(duration),
        "text_features": 77,
        "t5_features": 77,
    }
    assert [width for _, width in shapes.values()] == (
        [64, 96, 64, 128] if preset is TINY else [1024, 768, 1024, 2048]
    )
