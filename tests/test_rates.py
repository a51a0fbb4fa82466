"""Seconds to counts, against the reference table."""

from __future__ import annotations

import json

import pytest

from thinksound import rates
from thinksound.config import OobleckConfig, SpectrogramVAEConfig
from thinksound.presets import LIGHT, TINY

PUBLISHED = OobleckConfig()


def latents(duration_s: float, vae: OobleckConfig | SpectrogramVAEConfig = PUBLISHED) -> int:
    return rates.latent_frame_count(duration_s, vae.sample_rate, vae.hop)


def test_nine_seconds_are_the_published_lengths():
    assert rates.clip_frame_count(9.0) == 72
    assert rates.sync_feature_count(9.0) == 216
    assert latents(9.0) == 194
    assert (PUBLISHED.sample_rate, PUBLISHED.hop) == (44_100, 2048)


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
            "latent": latents(duration),
            "samples": latents(duration) * PUBLISHED.hop,
        }
        assert got == {key: wanted[key] for key in got}, duration


@pytest.mark.parametrize("vae", [LIGHT.vae, TINY.vae], ids=["published", "tiny"])
@pytest.mark.parametrize("hundredths", range(10, 2000, 7))
def test_generated_sound_is_within_half_a_latent_of_the_video(hundredths, vae):
    duration = hundredths / 100
    gap = rates.audio_sample_count(duration, vae.sample_rate) - latents(duration, vae) * vae.hop
    assert abs(gap) <= vae.hop // 2 + 1


def test_the_tiny_model_has_a_latent_every_32_milliseconds():
    assert (TINY.vae.sample_rate, TINY.vae.hop) == (16_000, 512)
    assert latents(4.0, TINY.vae) == 125
    assert rates.audio_sample_count(4.0, TINY.vae.sample_rate) == 64_000
