"""The sound of files: at the right rate, on both sides, and at the right time beside the pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from av.stream import Disposition
from support import clips as make
from support.decoded import decode_video

from thinksound.errors import MediaError
from thinksound.media.soundtrack import read_sound

RATE = 16_000


def burst(seconds: float, at_s: float, rate: int) -> np.ndarray:
    """Silence with 5 ms of a loud tone, (2, N)."""
    wave = np.zeros((2, round(seconds * rate)), np.float32)
    start = round(at_s * rate)
    wave[:, start : start + rate // 200] = 0.9 * np.sin(np.arange(rate // 200) * 2 * np.pi * 2000 / rate)
    return wave


def onset_s(waveform: torch.Tensor, rate: int = RATE) -> float:
    loud = waveform.abs().amax(dim=0) > 0.45
    return int(loud.nonzero()[0]) / rate


def film(
    path: Path,
    wave: np.ndarray,
    rate: int,
    codec: str,
    *,
    sound_from_s: float = 0.0,
    skip: tuple[float, float] | None = None,
) -> Path:
    """A second or more of 25 numbered pictures a second with a sound, which may leave a part out."""
    with av.open(path, "w") as output:
        video = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = output.add_stream(codec, rate=rate)
        assert isinstance(audio, av.AudioStream)
        audio.layout = "stereo"
        packets: list[av.Packet[Any]] = []
        for index in range(round(wave.shape[1] / rate * 25)):
            frame = av.VideoFrame.from_ndarray(make.numbered(index, 64, 48), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            packets += video.encode(frame.reformat(format="yuv420p"))
        packets += video.encode(None)
        for start in range(0, wave.shape[1] - 1023, 1024):
            if skip and skip[0] <= start / rate < skip[1]:
                continue
            piece = np.ascontiguousarray(wave[:, start : start + 1024])
            sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = start + round(sound_from_s * rate)
            for part in av.AudioResampler(format=audio.format.name, layout="stereo", rate=rate).resample(
                sound
            ):
                packets += audio.encode(part)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda packet: make.seconds(packet.dts, packet.time_base)):
            output.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "aac"),
        ("a.mov", "pcm_s16le"),
        ("flac.mkv", "flac"),
        ("a.ts", "aac"),
        ("opus.mkv", "libopus"),
    ],
)
def test_a_burst_is_heard_when_its_picture_is_seen(tmp_path, name, codec):
    rate = 48_000
    path = film(tmp_path / name, burst(1.5, 0.6, rate), rate, codec)
    sound = read_sound(path, RATE, 60)
    start_s = decode_video(path).start_s
    seen = sound.part(start_s, RATE, RATE)
    assert seen.shape == (2, RATE)
    assert onset_s(seen) == pytest.approx(0.6, abs=0.002)
    assert sound.has_pictures


@pytest.mark.parametrize(("default", "heard_at_s"), [(0, 0.2), (1, 0.9), (None, 0.2)])
def test_the_default_one_of_two_sounds_is_read(tmp_path, default, heard_at_s):
    parts = [film(tmp_path / f"{at}.mkv", burst(1.5, at, RATE), RATE, "pcm_s16le") for at in (0.2, 0.9)]
    with av.open(tmp_path / "a.mkv", "w") as output:
        for index, part in enumerate(parts):
            with av.open(part) as container:
                copy = output.add_stream_from_template(container.streams.audio[0])
                copy.disposition = Disposition.default if index == default else Disposition(0)
        for index, part in enumerate(parts):
            with av.open(part) as container:
                for packet in container.demux(audio=0):
                    if packet.dts is not None:
                        packet.stream = output.streams.audio[index]
                        output.mux(packet)
    sound = read_sound(tmp_path / "a.mkv", RATE, 60)
    assert onset_s(sound.waveform) == pytest.approx(heard_at_s, abs=0.002)


def test_sound_that_starts_later_stays_later(tmp_path):
    path = film(tmp_path / "a.mkv", burst(1.5, 0.2, RATE), RATE, "pcm_s16le", sound_from_s=0.5)
    sound = read_sound(path, RATE, 60)
    assert sound.start_s == pytest.approx(0.5, abs=1e-3)
    assert onset_s(sound.part(0.0, 2 * RATE, RATE)) == pytest.approx(0.7, abs=0.002)


def test_a_gap_is_silence_and_moves_nothing(tmp_path):
    path = film(tmp_path / "a.mkv", burst(2.0, 1.5, RATE), RATE, "pcm_s16le", skip=(0.4, 1.0))
    waveform = read_sound(path, RATE, 60).waveform
    assert onset_s(waveform) == pytest.approx(1.5, abs=0.002)


def test_any_part_can_be_taken_and_silence_surrounds_the_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full((RATE, 2), 0.5), RATE)
    sound = read_sound(tmp_path / "a.wav", RATE, 60)
    part = sound.part(-0.25, 2 * RATE, RATE)
    assert part.shape == (2, 2 * RATE)
    heard = part.abs().amax(dim=0) > 0
    assert (int(heard.nonzero()[0]), int(heard.sum())) == (RATE // 4, RATE)
    assert not sound.part(5.0, 10, RATE).any()


def test_mono_is_given_to_both_sides_as_loud_as_it_was(tmp_path):
    tone = 0.5 * np.sin(np.arange(44_100) * 2 * np.pi * 440 / 44_100)
    soundfile.write(tmp_path / "mono.flac", tone, 44_100)
    waveform = read_sound(tmp_path / "mono.flac", RATE, 60).waveform
    assert waveform.shape == (2, RATE)
    assert torch.equal(waveform[0], waveform[1])
    expected = 0.5 * np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE)
    assert np.abs(waveform[0].numpy() - expected)[100:-100].max() < 2e-3


def test_the_sides_stay_apart(tmp_path):
    wave = np.zeros((RATE, 2))
    wave[:, 1] = 0.5 * np.sin(np.arange(RATE) * 0.1)
    soundfile.write(tmp_path / "right.wav", wave, RATE, subtype="FLOAT")
    waveform = read_sound(tmp_path / "right.wav", RATE, 60).waveform
    assert not waveform[0].any()
    assert np.allclose(waveform[1].numpy(), wave[:, 1], atol=1e-6)


def test_reading_stops_at_the_limit(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros((10 * RATE, 2)), RATE)
    samples = read_sound(tmp_path / "long.wav", RATE, 2.0).waveform.shape[1]
    assert 2 * RATE <= samples < 3 * RATE


def test_a_cover_is_no_moving_picture(tmp_path):
    make.render_sound(tmp_path / "song.mp3", codec="mp3")
    assert not read_sound(tmp_path / "song.mp3", RATE, 60).has_pictures


def test_what_has_no_sound_says_so(tmp_path):
    make.render(tmp_path / "silent.mp4")
    with pytest.raises(MediaError, match=r"silent\.mp4: no sound that can be read \(1 video stream found\)"):
        read_sound(tmp_path / "silent.mp4", RATE, 60)
    with pytest.raises(MediaError, match="no such file"):
        read_sound(tmp_path / "absent.wav", RATE, 60)


def test_a_hole_in_the_middle_is_damage(tmp_path):
    path = make.render_sound(tmp_path / "a.m4a", 3.0)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 3000] = bytes(3000)
    path.write_bytes(whole)
    with pytest.raises(MediaError, match=r"a part of its sound is lost"):
        read_sound(path, RATE, 60)


def test_times_that_jump_back_are_damage(tmp_path):
    path = tmp_path / "a.ts"
    joined = [film(tmp_path / f"{index}.ts", burst(1.5, 0.5, RATE), RATE, "aac") for index in range(2)]
    path.write_bytes(b"".join(part.read_bytes() for part in joined))
    with pytest.raises(MediaError, match="the times of its sound jump back"):
        read_sound(path, RATE, 60)
