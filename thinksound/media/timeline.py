"""When each picture of a video is shown, as exact fractions of a second.

Only pictures that a player presents count: those hidden by an edit list are decoded and dropped.
The end of the video is the end of its last picture, never what the container claims: containers
count sound that outlasts the picture, and hidden pictures.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_low

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .probe import decoding_bytes, frame_rotation, is_too_large, refuse_growth
from .shortage import check_room, check_shortage

_FALLBACK_INTERVAL = Fraction(1, 25)  # s, where neither the stream nor its pictures say
_FASTEST = 1000  # frames per second; a stream that claims more names a unit of its clock
_RESTART = Fraction(1, 2)  # s; a clock that goes back by more starts again, by less it is unsteady
_FINEST = Fraction(1, 90_000)  # s; frames that are nearer share a time: the output may have no finer unit
_WAITING = 128 * 2**20  # bytes of frames with one time that wait for the next time
# Containers that store how long a picture stays; elsewhere a parser guesses it from the headers.
_STORE_DURATIONS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "gif", "apng"}

# Colour tags (ITU-T H.273) that FFmpeg's scaler converts from. It refuses pictures with any other, the
# reserved ones of careless recorders included, where players take their defaults.
_MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
_TRANSFERS = {1, 2, *range(4, 9), *range(11, 19)}
_PRIMARIES = {1, 2, *range(4, 13), 22}
_UNSPECIFIED, _BT2020, _BT2020_CONSTANT = 2, 9, 10


@dataclass(frozen=True)
class FrameShape:
    """The size of a frame and how it is to be shown."""

    width: int  # as stored, before rotation
    height: int
    sample_aspect_ratio: Fraction  # as the frame's own headers say, 1 where they say nothing
    rotation: int  # 0, 90, 180, 270, as in VideoInfo


@dataclass(frozen=True)
class Timeline:
    """The pictures that take part in a request, without their pixels."""

    times: tuple[Fraction, ...]  # s, strictly increasing; when each picture appears
    end: Fraction  # s; when the last one disappears
    cut: bool  # whether the video goes on after ``end``
    shapes: tuple[FrameShape, ...]  # all that occur, in the order of their first appearance
    damaged: bool  # whether packets were lost or could not be decoded
    moved: Mapping[int, Fraction]  # s; packets, by their number, shown at another time than they store
    lost_start: Fraction  # s before the first frame of which packets exist and do not decode

    @property
    def start(self) -> Fraction:
        """When the first picture appears; 0 in most files."""
        return self.times[0]

    @property
    def duration(self) -> Fraction:
        """Seconds from the first picture to the end of the last."""
        return self.end - self.start

    @property
    def constant_shape(self) -> bool:
        """Whether all frames have the shape of the first."""
        return len(self.shapes) == 1

    @property
    def rate(self) -> Fraction:
        """Frames per second, measured. Stills, which stay for twice the usual time or more, do not count."""
        gaps = [after - time for time, after in pairwise(self.times)] or [self.duration]
        longest = 2 * median_low(gaps)
        moving = [gap for gap in gaps if gap < longest]
        return len(moving) / sum(moving, Fraction(0))


@dataclass(frozen=True)
class TimedFrame:
    """A presented picture."""

    frame: VideoFrame
    stored: Fraction | None  # s; the time that the file gives it
    time: Fraction  # s; when it is presented
    duration: Fraction | None  # s, where the container stores it
    shape: FrameShape


class PresentedFrames:
    """Iterates once over the pictures of a video in the order of presentation.

    Damaged packets are skipped, as players do, and remembered in :attr:`damaged`. Colour tags are
    replaced where no conversion knows them. Frames with the time of the one before them, or a slightly
    earlier one, are moved into the interval that follows, and remembered in :attr:`moved`.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.damaged = False
        self.too_large = False  # whether a packet was refused for the size of its frame
        self._container = container
        self._path = Path(container.name.removeprefix("file:"))
        self._stream = stream
        self._time_base = Fraction(stream.time_base or _FALLBACK_INTERVAL)
        stream.codec_context.flags |= Flags.copy_opaque  # so that a frame names its packet
        self.moved: dict[int, Fraction] = {}  # s; times by the number of the packet
        self._earliest: Fraction | None = None  # s; first time that a packet stores
        self.lost_start = Fraction(0)  # s before the first frame of which packets exist and do not decode
        self._begun = False  # whether a frame was decoded
        self._gaps: list[Fraction] = []
        self._rotation = 0  # of the frame before
        # AVI knows only the order of decoding. Its times, sorted, belong to the pictures in the
        # order in which they leave the decoder.
        self._unsorted: list[int] | None = [] if container.format.name == "avi" else None

    def __iter__(self) -> Iterator[TimedFrame]:
        waiting: list[TimedFrame] = []  # frames that share the time of the first of them
        shift = Fraction(0)
        stores_durations = self._container.format.name in _STORE_DURATIONS
        for frame in self._frames():
            now = waiting[0].time if waiting else None
            ticks = self._ticks(frame)
            if ticks is not None:
                time = ticks * self._time_base + shift
            else:
                time = Fraction(0) if now is None else now + self.interval
            if now is None:
                if self._earliest is not None:
                    self.lost_start = max(time - self._earliest, Fraction(0))
            elif now - time >= max(_RESTART, self.interval):
                # Recordings joined byte by byte start their clock again.
                shift += now + self.interval - time
                time = now + self.interval
            if now is not None and time - now >= _FINEST * len(waiting):
                yield from self._spread(waiting, time - now)
                self._gaps.append(time - now)
                waiting = []
            elif now is not None and (len(waiting) + 1) * _bytes(frame) > _WAITING:
                # The clock stands still: frames follow each other at their usual pace until it goes on.
                time = now + self.interval * len(waiting)
                yield from self._spread(waiting, self.interval * len(waiting), self.interval)
                waiting = []
            stay = frame.duration * self._time_base if stores_durations and frame.duration > 0 else None
            stored = None if frame.pts is None else frame.pts * self._time_base
            waiting.append(TimedFrame(frame, stored, time, stay, self._shape(frame)))
        if waiting:
            # A clock that never moved says nothing.
            step = None if self._gaps else self.interval
            yield from self._spread(waiting, waiting[-1].duration or self.interval, step)

    def _spread(
        self, waiting: list[TimedFrame], stay: Fraction, step: Fraction | None = None
    ) -> Iterator[TimedFrame]:
        """Frames with one time, one ``step`` apart: by default, evenly within one interval.

        ``stay`` is the time until the next frame appears, or until the last one disappears.
        """
        first, *twins = waiting
        yield first
        if step is None:
            step = max(min(stay, self.interval) / len(waiting), _FINEST)
        for place, twin in enumerate(twins, 1):
            time = first.time + place * step
            if isinstance(twin.frame.opaque, int):  # not every decoder passes it on
                self.moved[twin.frame.opaque] = time
            yield replace(twin, time=time, duration=max(stay - place * step, step))

    @property
    def interval(self) -> Fraction:
        """Typical time between two pictures so far."""
        if self._gaps:
            return median_low(self._gaps)
        rate = self._stream.guessed_rate
        return 1 / rate if rate and rate <= _FASTEST else _FALLBACK_INTERVAL

    def _shape(self, frame: VideoFrame) -> FrameShape:
        # PyAV does not tell a frame's own aspect; its decoder's is that of the frame it gave last.
        aspect = self._stream.codec_context.sample_aspect_ratio
        # A display orientation in the stream (H.264, HEVC) holds up to the next key frame. FFmpeg gives it to
        # the one frame that carries it; the matrix of a container is on every frame.
        if frame.key_frame or frame.side_data.get("DISPLAYMATRIX"):
            self._rotation = frame_rotation(frame)
        return FrameShape(frame.width, frame.height, aspect or Fraction(1), self._rotation)

    def _ticks(self, frame: VideoFrame) -> int | None:
        if self._unsorted is None:
            return frame.pts
        return heapq.heappop(self._unsorted) if self._unsorted else None

    def _frames(self) -> Iterator[VideoFrame]:
        too_large = 0  # packets in a row
        for packet in self._numbered_packets():
            if packet is not None and packet.is_corrupt:
                self.damaged = True
            if self._unsorted is not None and packet is not None and packet.size and packet.dts is not None:
                heapq.heappush(self._unsorted, packet.dts)
            # What finds no room is skipped like damage, not always with an error.
            room = decoding_bytes(self._stream)
            check_room(room)
            try:
                frames = self._stream.decode(packet)
            except av.error.FFmpegError as error:
                check_shortage(error, room)
                too_large = too_large + 1 if is_too_large(self._stream) else 0
                self.too_large |= too_large > 0
                if too_large > 1:  # one alone is a damaged packet
                    refuse_growth(self._path)
                self.damaged = True
                continue
            too_large = 0 if frames else too_large
            self._begun |= bool(frames)
            for frame in frames:
                self.damaged |= frame.is_corrupt
                _make_convertible(frame)
                yield frame

    def _numbered_packets(self) -> Iterator[Packet[VideoStream] | None]:
        number = 0
        for packet in self._packets():
            if packet is not None and packet.size:
                packet.opaque = number
                number += 1
                if packet.pts is not None and not packet.is_discard:
                    time = packet.pts * self._time_base
                    self._earliest = time if self._earliest is None else min(self._earliest, time)
            yield packet

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                check_shortage(error)
                self.damaged = True  # the file ends in the middle of a packet
                if not self._begun:
                    return  # what the decoder holds, if anything, is no video
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


def _bytes(frame: VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)
