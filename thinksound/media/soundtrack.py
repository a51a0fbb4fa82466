"""Reads the sound of a video or sound file as a waveform at a given sample rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from torch import Tensor

from ..errors import MediaError
from .probe import moving_streams, open_media
from .shortage import check_shortage

_GAP_S = 0.05  # a larger step in the times is a gap; a smaller one comes from rounding in the container


@dataclass(frozen=True)
class Soundtrack:
    """The sound of one file."""

    waveform: Tensor  # (2, A) float32; a mono file gives two equal channels
    start_s: float  # time of the first sample on the file's clock, which its video track uses too
    has_pictures: bool  # whether the file also has a moving video track

    def part(self, start_s: float, samples: int, sample_rate: int) -> Tensor:
        """Return ``(2, samples)`` from ``start_s`` (s) on, with silence where there is no sound."""
        first = round((start_s - self.start_s) * sample_rate)
        part = torch.zeros(2, samples)
        begin, end = max(first, 0), min(first + samples, self.waveform.shape[1])
        if begin < end:
            part[:, begin - first : end - first] = self.waveform[:, begin:end]
        return part


def read_sound(path: Path | str, sample_rate: int, limit_s: float) -> Soundtrack:
    """Read the sound of a file; of several tracks the one marked as default, or else the first.

    Args:
        path: a video or sound file.
        sample_rate: in Hz; the sound is resampled to it.
        limit_s: seconds of sound after which reading stops.

    Raises:
        MediaError: the file is missing or damaged, or has no sound.
        PlacementError: out of memory.
    """
    with open_media(path) as container:
        stream = _sound_stream(container)
        if stream is None:
            count = len(container.streams.video)
            found = f"{count} video stream{'s' * (count != 1)} found"
            raise MediaError(f"{path}: no sound that can be read ({found}); give a file with sound")
        runs: list[tuple[float, np.ndarray]] = []  # time and samples (2, n) of each stretch without a gap
        resampler: _Resampler | None = None
        end_s = 0.0  # of the sound decoded so far
        for frame in _frames(Path(path), container, stream, limit_s):
            time_s = float(frame.time) if frame.time is not None else end_s
            if resampler is not None and time_s < end_s - _GAP_S:
                raise MediaError(
                    f"{path}: damaged (the times of its sound jump back); copy or export it again"
                )
            if resampler is None or not resampler.fits(frame) or abs(time_s - end_s) > _GAP_S:
                if resampler is not None:
                    runs.append(resampler.finish())
                resampler, end_s = _Resampler(frame, time_s, sample_rate), time_s
            resampler.add(frame)
            end_s += frame.samples / frame.sample_rate
        if resampler is None:
            raise MediaError(f"{path}: damaged (no sound can be decoded); copy or export the file again")
        runs.append(resampler.finish())
        start_s = runs[0][0]
        places = [(round((time_s - start_s) * sample_rate), samples) for time_s, samples in runs]
        waveform = torch.zeros(2, max(place + samples.shape[1] for place, samples in places))
        for place, samples in places:
            waveform[:, place : place + samples.shape[1]] = torch.from_numpy(samples)
        return Soundtrack(waveform, start_s, bool(moving_streams(container)))


def _sound_stream(container: InputContainer) -> AudioStream | None:
    known = [stream for stream in container.streams.audio if stream.codec_context is not None]
    default = (stream for stream in known if stream.disposition & Disposition.default)
    return next(default, known[0] if known else None)


def _frames(
    path: Path, container: InputContainer, stream: AudioStream, limit_s: float
) -> Iterator[AudioFrame]:
    """Yield decoded pieces of sound.

    Raises:
        MediaError: a part between two decoded pieces cannot be decoded.
    """
    end_s: float | None = None  # when to stop; known once the first piece is decoded
    lost = False
    for packet in _packets(container, stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            check_shortage(error)
            lost = end_s is not None
            continue
        for frame in frames:
            if lost:
                raise MediaError(f"{path}: damaged (a part of its sound is lost); copy or export it again")
            if end_s is None:
                end_s = (frame.time or 0.0) + limit_s
            if frame.time is not None and frame.time > end_s:
                return
            yield frame


def _packets(container: InputContainer, stream: AudioStream) -> Iterator[Packet[AudioStream]]:
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            check_shortage(error)
            return  # the file ends in the middle of a packet


class _Resampler:
    """Resamples one stretch of sound without a gap or a change of format."""

    def __init__(self, first: AudioFrame, time_s: float, sample_rate: int) -> None:
        self._kind = _kind(first)
        self._time_s = time_s
        channels = min(first.layout.nb_channels, 2)
        layout = ("mono", "stereo")[channels - 1]
        self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=sample_rate)
        self._parts: list[np.ndarray] = [np.zeros((channels, 0), np.float32)]

    def fits(self, frame: AudioFrame) -> bool:
        return _kind(frame) == self._kind

    def add(self, frame: AudioFrame) -> None:
        frame.pts = None  # the resampler keeps no times
        self._parts += [part.to_ndarray() for part in self._resampler.resample(frame)]

    def finish(self) -> tuple[float, np.ndarray]:
        """Return the start of the stretch in seconds, and its samples (2, n)."""
        self._parts += [part.to_ndarray() for part in self._resampler.resample(None)]
        samples = np.concatenate(self._parts, axis=1)
        return self._time_s, np.broadcast_to(samples, (2, samples.shape[1])).copy()


def _kind(frame: AudioFrame) -> tuple[str, int, str]:
    return frame.format.name, frame.sample_rate, frame.layout.name
