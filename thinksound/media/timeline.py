"""When each picture of a video is shown, as exact fractions of a second.

Only pictures that a player presents count: those hidden by an edit list are decoded and dropped.
The end of the video is the end of its last picture, never what the container claims: containers
count sound that outlasts the picture, and hidden pictures.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from statistics import median_low

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

_FALLBACK_INTERVAL = Fraction(1, 25)  # s, where neither the stream nor its pictures say
# Containers that store how long a picture stays; elsewhere a parser guesses it from the headers.
_STORE_DURATIONS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "gif", "apng"}

# Colour tags (ITU-T H.273) that FFmpeg's scaler converts from. It refuses pictures with any other, the
# reserved ones of careless recorders included, where players take their defaults.
_MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
_TRANSFERS = {1, 2, *range(4, 9), *range(11, 19)}
_PRIMARIES = {1, 2, *range(4, 13), 22}
_UNSPECIFIED, _BT2020, _BT2020_CONSTANT = 2, 9, 10


@dataclass(frozen=True)
class Timeline:
    """The pictures that take part in a request, without their pixels."""

    times: tuple[Fraction, ...]  # s, strictly increasing; when each picture appears
    end: Fraction  # s; when the last one disappears
    cut: bool  # whether the video goes on after ``end``
    constant_size: bool  # whether all pictures have the size of the first
    damaged: bool  # whether packets were lost or could not be decoded

    @property
    def start(self) -> Fraction:
        """When the first picture appears; 0 in most files."""
        return self.times[0]

    @property
    def duration(self) -> Fraction:
        """Seconds from the first picture to the end of the last."""
        return self.end - self.start


@dataclass(frozen=True)
class TimedFrame:
    """A presented picture."""

    frame: VideoFrame
    time: Fraction  # s
    duration: Fraction | None  # s, where the container stores it


class PresentedFrames:
    """Iterates once over the pictures of a video in the order of presentation.

    Damaged packets are skipped, as players do, and remembered in :attr:`damaged`. Colour tags are
    replaced where no conversion knows them.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.damaged = False
        self._container = container
        self._stream = stream
        self._time_base = Fraction(stream.time_base or _FALLBACK_INTERVAL)
        self._gaps: list[Fraction] = []
        # AVI knows only the order of decoding. Its times, sorted, belong to the pictures in the
        # order in which they leave the decoder.
        self._unsorted: list[int] | None = [] if container.format.name == "avi" else None

    def __iter__(self) -> Iterator[TimedFrame]:
        last: Fraction | None = None
        shift = Fraction(0)
        stores_durations = self._container.format.name in _STORE_DURATIONS
        for frame in self._frames():
            ticks = self._ticks(frame)
            if ticks is not None:
                time = ticks * self._time_base + shift
            else:
                time = Fraction(0) if last is None else last + self.interval
            if last is not None and time <= last:
                # Recordings joined byte by byte start their clock again.
                shift += last + self.interval - time
                time = last + self.interval
            if last is not None:
                self._gaps.append(time - last)
            last = time
            stored = frame.duration * self._time_base if stores_durations and frame.duration > 0 else None
            yield TimedFrame(frame, time, stored)

    @property
    def interval(self) -> Fraction:
        """Typical time between two pictures so far."""
        if self._gaps:
            return median_low(self._gaps)
        rate = self._stream.guessed_rate
        return 1 / rate if rate else _FALLBACK_INTERVAL

    def _ticks(self, frame: VideoFrame) -> int | None:
        if self._unsorted is None:
            return frame.pts
        return heapq.heappop(self._unsorted) if self._unsorted else None

    def _frames(self) -> Iterator[VideoFrame]:
        for packet in self._packets():
            if packet is not None and packet.is_corrupt:
                self.damaged = True
            if self._unsorted is not None and packet is not None and packet.size and packet.dts is not None:
                heapq.heappush(self._unsorted, packet.dts)
            try:
                frames = self._stream.decode(packet)
            except av.error.FFmpegError:
                self.damaged = True
                continue
            for frame in frames:
                self.damaged |= frame.is_corrupt
                _make_convertible(frame)
                yield frame

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self.damaged = True  # the file ends in the middle of a packet
                packet = None
            if packet is None or (packet.size == 0 and packet.dts is None):
                yield None  # tells the decoder to hand out what it still holds
                return
            yield packet


def _make_convertible(frame: VideoFrame) -> None:
    """Replace the colour tags that the scaler refuses by what players take instead."""
    if frame.colorspace not in _MATRICES:
        frame.colorspace = _BT2020 if frame.colorspace == _BT2020_CONSTANT else _UNSPECIFIED
    if frame.color_trc not in _TRANSFERS:
        frame.color_trc = _UNSPECIFIED
    if frame.color_primaries not in _PRIMARIES:
        frame.color_primaries = _UNSPECIFIED
