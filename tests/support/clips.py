"""Renders small clips for tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """Draw a frame that shows ``index`` as ten blocks, black for 0, white for 1, like the reference clips."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(10):
        row, column = divmod(bit, 5)
        if index >> bit & 1:
            rows = slice(height * row // 2, height * (row + 1) // 2)
            picture[rows, width * column // 5 : width * (column + 1) // 5] = 255
    return picture


def number_of(picture: np.ndarray) -> int:
    """Read the index that :func:`numbered` drew from a decoded frame."""
    height, width, _ = picture.shape
    bits = 0
    for bit in range(10):
        row, column = divmod(bit, 5)
        bits |= int(picture[height * (2 * row + 1) // 4, width * (2 * column + 1) // 10].mean() > 127) << bit
    return bits


def seconds(count: int | None, unit: Fraction | None) -> float:
    """Return a time of PyAV, which must not be None, in seconds."""
    assert count is not None and unit is not None
    return float(count * unit)


@contextmanager
def usual_priority() -> Iterator[None]:
    """Restore the scheduling of the calling thread after the block.

    As root, SVT-AV1 makes the thread that calls it a real-time thread. This thread, and every process that it
    starts from then on, would keep all others from running.
    """
    if not hasattr(os, "sched_setscheduler"):  # only Linux has it
        yield
        return
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


@usual_priority()
def render(
    path: Path,
    *,
    frames: int = 25,
    rate: int | Fraction = 25,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    sound_s: float = 0.0,
    stay_s: float = 0.0,
    draw: Callable[[int, int, int], np.ndarray] = numbered,
    **stream_attributes: Any,
) -> Path:
    """Write a clip of numbered frames of ``size`` (width, height), with a tone of ``sound_s`` seconds.

    ``times`` are the presentation times in seconds; by default there is one frame every 1 / ``rate``. The
    last frame stays for ``stay_s`` seconds, by default as long as the others.
    """
    fast = {"preset": "ultrafast", "crf": "30"} if codec == "libx264" else {}
    with av.open(path, "w", format=container_format, container_options=container_options) as output:
        stream = output.add_stream(codec, rate=rate, options={**fast, **(options or {})})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.time_base = stream.codec_context.time_base = MILLISECOND
        for name, value in stream_attributes.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        tone = output.add_stream("aac", rate=44_100) if sound_s else None
        packets: list[av.Packet[Any]] = []
        for index in range(frames if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(draw(index, *size), format="rgb24").reformat(
                format=pixel_format
            )
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), MILLISECOND
            else:
                frame.pts, frame.time_base = index, 1 / Fraction(rate)
            last = seconds(frame.pts, frame.time_base)
            packets += stream.encode(frame)
        for packet in packets + stream.encode(None):
            if stay_s and seconds(packet.pts, packet.time_base) == last:
                packet.duration = round(Fraction(stay_s) / packet.time_base)
            output.mux(packet)
        if tone is not None:
            wave = np.sin(np.arange(round(44_100 * sound_s)) * 0.0627).astype(np.float32) * 0.3
            sound = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 44_100, 0, Fraction(1, 44_100)
            output.mux(tone.encode(sound))
            output.mux(tone.encode(None))
    return path


def render_sound(path: Path, seconds: float = 1.0, codec: str = "aac", rate: int = 44_100) -> Path:
    """Write a file with a tone and no video track."""
    with av.open(path, "w") as output:
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        wave = np.sin(np.arange(round(rate * seconds)) * 0.0627).astype(np.float32) * 0.3
        sound = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
        if stream.format.name != "fltp":
            (sound,) = av.AudioResampler(format=stream.format.name, layout="stereo", rate=rate).resample(
                sound
            )
        output.mux(stream.encode(sound))
        output.mux(stream.encode(None))
    return path


def remux(
    source: Path,
    target: Path,
    *,
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
    shift_s: float = 0.0,
    times: Sequence[float] | None = None,
    skip: int = 0,
) -> Path:
    """Copy the video packets of ``source`` into another container, ``shift_s`` seconds later.

    The first ``skip`` packets of the file are left out. ``times`` are new presentation times in seconds, in
    the order of presentation; they need not increase.
    """
    with (
        av.open(source) as video,
        av.open(target, "w", format=container_format, container_options=container_options) as output,
    ):
        stream = video.streams.video[0]
        copy = output.add_stream_from_template(stream)
        coded = [packet for packet in video.demux(stream) if packet.dts is not None]
        shown = sorted(packet.pts for packet in coded if packet.pts is not None)
        for packet in coded[skip:]:
            assert packet.pts is not None and packet.dts is not None
            if times is not None:
                packet.pts = round(Fraction(times[shown.index(packet.pts)]) / packet.time_base)
                decoded_s = coded.index(packet) * MILLISECOND - 10  # before all times, as muxers demand
                packet.dts = round(decoded_s / packet.time_base)
            shift = round(Fraction(shift_s) / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = copy
            output.mux(packet)
    return target
