"""Clips of files: where they begin and end, and which are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support import clips as make

from thinksound.data.clips import Clip, Skipped
from thinksound.data.shards import Layout
from thinksound.data.sources import FileSource
from thinksound.families.find import family_of
from thinksound.media.soundtrack import read_sound
from thinksound.presets import TINY

pytestmark = pytest.mark.slow

FAMILY = family_of(TINY)
RATE = FAMILY.sound.sample_rate


def write(path: Path, seconds: float, peak: float = 0.5, rate: int = RATE) -> Path:
    values = np.random.default_rng(0).uniform(-peak, peak, (round(seconds * rate), 1))
    soundfile.write(path, values.astype(np.float32), rate, subtype="FLOAT")
    return path


def read(path: Path, duration_s: float = 1.0) -> list[Clip | Skipped]:
    return list(FileSource("file", path, "rain", "").read(Layout.of(FAMILY, duration_s)))


def outcome(path: Path, duration_s: float = 1.0) -> list[str]:
    """The names of clips, and the reasons of what was left out."""
    return [each.name if isinstance(each, Clip) else each.reason for each in read(path, duration_s)]


def test_a_sound_that_is_half_a_frame_short_is_long_enough(tmp_path):
    assert outcome(write(tmp_path / "near.wav", 1.985)) == ["file", "file@1"]
    assert outcome(write(tmp_path / "short.wav", 1.97)) == ["file"]


def test_clips_begin_on_frames_of_the_fastest_view(tmp_path):
    # At 25 frames per second, 1.01 s and 2.02 s are no times of frames.
    path = write(tmp_path / "n.wav", 3.1)
    assert outcome(path, 1.01) == ["file", "file@1", "file@2"]
    clip = read(path, 1.01)[2]
    assert isinstance(clip, Clip)
    sound = read_sound(path, RATE, 10.0)
    assert torch.equal(clip.waveform, sound.part(2.0, clip.waveform.shape[1], RATE))


def test_sound_is_taken_from_the_time_of_the_first_picture(tmp_path):
    times = [0.6 + index / 25 for index in range(26)]
    path = make.render(tmp_path / "late.mp4", times=times, sound_s=2.0)
    sound = read_sound(path, RATE, 10.0)
    clip = read(path)[0]
    assert isinstance(clip, Clip) and clip.frames
    samples = clip.waveform.shape[1]
    assert torch.equal(clip.waveform, sound.part(0.6, samples, RATE))
    assert not torch.equal(clip.waveform, sound.part(0.0, samples, RATE))


def test_a_sound_may_end_a_tenth_of_a_second_before_the_pictures(tmp_path):
    assert outcome(make.render(tmp_path / "a.mp4", frames=25, sound_s=0.94)) == ["file"]
    (reason,) = outcome(make.render(tmp_path / "b.mp4", frames=25, sound_s=0.75))
    assert reason.startswith("its sound ends 0.2")


def test_silence_begins_at_80_decibels_below_full_scale(tmp_path):
    assert outcome(write(tmp_path / "quiet.wav", 1.0, peak=2e-4)) == ["file"]
    assert outcome(write(tmp_path / "silent.wav", 1.0, peak=0.5e-4)) == ["silent"]


def test_a_clip_whose_sound_is_not_finite_is_left_out_alone(tmp_path):
    values = np.full((3 * RATE, 1), 0.1, np.float32)
    values[RATE + 100] = np.nan
    soundfile.write(tmp_path / "n.wav", values, RATE, subtype="FLOAT")
    assert outcome(tmp_path / "n.wav") == ["file", "its sound holds values that are not numbers", "file@2"]


def test_what_comes_after_three_minutes_is_not_used_and_said(tmp_path):
    path = write(tmp_path / "long.wav", 181.0, rate=8000)
    assert outcome(path, 60.0) == ["file", "file@60", "file@120", "what comes after 180 s is not used"]


def test_a_source_is_another_one_with_any_other_value(tmp_path):
    source = FileSource("file", write(tmp_path / "n.wav", 0.1), "rain", "on a roof")
    others = [
        replace(source, name="other"),
        replace(source, path=write(tmp_path / "m.wav", 0.2)),
        replace(source, caption="wind"),
        replace(source, cot=""),
    ]
    assert len({each.identity() for each in (source, *others)}) == 5
    assert replace(source, path=write(tmp_path / "same.wav", 0.1)).identity() == source.identity()
