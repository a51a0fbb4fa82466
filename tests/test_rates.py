"""Seconds to counts, against the reference table."""

from __future__ import annotations

import json

import pytest

from thinksound import rates


def test_nine_seconds_are_the_published_lengths():
    assert rates.clip_frame_count(9.0) == 72
    assert rates.sync_feature_count(9.0) == 216
    assert rates.latent_frame_count(9.0) == 194


def test_all_reference_durations(parity):
    rows = json.loads((parity / "features" / "lengths.json").read_text())
    assert len(rows) > 20
    for row in rows:
        duration, wanted = row["duration"], row["recommended"]
        frames = rates.sync_frame_count(duration)
        got = {
            "clip": rates.clip_frame_count(duration),
            "sync_frames": frames,
            "segments": rates.sync_segment_count(frames),
            "sync": rates.sync_feature_count(duration),
            "latent": rates.latent_frame_count(duration),
            "samples": rates.latent_frame_count(duration) * rates.LATENT_HOP,
        }
        assert got == {key: wanted[key] for key in got}, duration


@pytest.mark.parametrize("hundredths", range(10, 2000, 7))
def test_generated_sound_is_within_half_a_latent_of_the_video(hundredths):
    duration = hundredths / 100
    gap = rates.audio_sample_count(duration) - rates.latent_frame_count(duration) * rates.LATENT_HOP
    assert abs(gap) <= rates.LATENT_HOP // 2 + 1
