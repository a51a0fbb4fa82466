"""Finds when each frame of a video is shown, as exact fractions of a second.

Only frames that a player presents count: those hidden by an edit list are decoded and dropped. The end of the
video is the end of its last frame, never the duration that the container claims, which includes hidden frames
and sound that outlasts the video.
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

_FALLBACK_INTERVAL = Fraction(1, 25)  # s; used if neither the stream nor its frames give a rate
_FASTEST = 1000  # frames per second; a stream that claims more gives the unit of its clock instead
_RESTART = Fraction(1, 2)  # s; times that go back by this much or more start again; less is jitter
_FINEST = Fraction(1, 90_000)  # s; closer frames count as one time, as the output may have no finer unit
_WAITING = 128 * 2**20  # bytes of frames with the same time that wait for the next time
# Containers that store how long a frame stays; for others, a parser guesses it from the headers.
_STORE_DURATIONS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "gif", "apng"}

# Colour tags (ITU-T H.273) that FFmpeg's scaler accepts. It refuses frames with any other tag, such as the
# reserved values that some recorders write; players use their defaults for those.
_MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
_TRANSFERS = {1, 2, *range(4, 9), *range(11, 19)}
_PRIMARIES = {1, 2, *range(4, 13), 22}
_UNSPECIFIED, _BT2020, _BT2020_CONSTANT = 2, 9, 10


@dataclass(frozen=True)
class FrameShape:
    """The size of a frame and how it is shown."""

    width: int  # as stored, before rotation
    height: int
    sample_aspect_ratio: Fraction  # from the frame's own headers; 1 where they do not give it
    rotation: int  # 0, 90, 180, 270, as in VideoInfo


@dataclass(frozen=True)
class Timeline:
    """The times and shapes of the frames that a request uses, without their pixels."""

    times: tuple[Fraction, ...]  # s, strictly increasing; when each frame appears
    end: Fraction  # s; when the last frame disappears
    cut: bool  # whether the video goes on after ``end``
    shapes: tuple[FrameShape, ...]  # all that occur, in the order of their first appearance
    damaged: bool  # whether packets were lost or could not be decoded
    moved: Mapping[int, Fraction]  # s; times by packet number, where they are not the stored ones
    lost_start: Fraction  # s before the first frame, for which packets exist that do not decode

    @property
    def start(self) -> Fraction:
        """When the first frame appears, in seconds; 0 in most files."""
        return self.times[0]

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last one."""
        return self.end - self.start

    @property
    def constant_shape(self) -> bool:
        """Whether all frames have the shape of the first."""
        return len(self.shapes) == 1

    @property
    def rate(self) -> Fraction:
        """Measured frames per second, without frames that stay for twice the median interval or longer."""
        gaps = [after - time for time, after in pairwise(self.times)] or [self.duration]
        longest = 2 * median_low(gaps)
        moving = [gap for gap in gaps if gap < longest]
        return len(moving) / sum(moving, Fraction(0))


@dataclass(frozen=True)
class TimedFrame:
    """A presented frame."""

    frame: VideoFrame
    stored: Fraction | None  # s; its time in the file
    time: Fraction  # s; when it is presented
    duration: Fraction | None  # s; None where the container does not store it
    shape: FrameShape


class PresentedFrames:
    """Iterates once over the frames of a video in the order of presentation.

    Damaged packets are skipped, as players do, and :attr:`damaged` is set. Colour tags that the scaler
    refuses are replaced. A frame with the same time as the one before it, or a slightly earlier one, is moved
    into the interval that follows and recorded in :attr:`moved`.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.damaged = False
        self.too_large = False  # whether a packet was refused for the size of its frame
        self._container = container
        self._path = Path(container.name.removeprefix("file:"))
        self._stream = stream
        self._time_base = Fraction(stream.time_base or _FALLBACK_INTERVAL)
        stream.codec_context.flags |= Flags.copy_opaque  # so that a frame carries the number of its packet
        self.moved: dict[int, Fraction] = {}  # s; presentation times by packet number
        self._earliest: Fraction | None = None  # s; earliest time that a packet stores
        self.lost_start = Fraction(0)  # s before the first frame, for which packets exist that do not decode
        self._begun = False  # whether a frame was decoded
        self._gaps: list[Fraction] = []  # s; intervals between successive times so far
        self._rotation = 0  # degrees; of the previous frame
        # AVI stores decoding times only. Sorted, they belong to the frames in the order in which these leave
        # the decoder.
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
                # In recordings joined byte by byte, the times start again.
                shift += now + self.interval - time
                time = now + self.interval
            if now is not None and time - now >= _FINEST * len(waiting):
                yield from self._spread(waiting, time - now)
                self._gaps.append(time - now)
                waiting = []
            elif now is not None and (len(waiting) + 1) * _bytes(frame) > _WAITING:
                # The times do not advance: frames get the usual interval until they do.
                time = now + self.interval * len(waiting)
                yield from self._spread(waiting, self.interval * len(waiting), self.interval)
                waiting = []
            stay = frame.duration * self._time_base if stores_durations and frame.duration > 0 else None
            stored = None if frame.pts is None else frame.pts * self._time_base
            waiting.append(TimedFrame(frame, stored, time, stay, self._shape(frame)))
        if waiting:
            # Without any interval between times, the frames get the stream's usual interval.
            step = None if self._gaps else self.interval
            yield from self._spread(waiting, waiting[-1].duration or self.interval, step)

    def _spread(
        self, waiting: list[TimedFrame], stay: Fraction, step: Fraction | None = None
    ) -> Iterator[TimedFrame]:
        """Yield frames that share a time, ``step`` seconds apart; by default evenly within one interval.

        ``stay`` is the time in seconds until the next frame appears, or until the last one disappears.
        """
        first, *twins = waiting
        yield first
        if step is None:
            step = max(min(stay, self.interval) / len(waiting), _FINEST)
        for place, twin in enumerate(twins, 1):
            time = first.time + place * step
            if isinstance(twin.frame.opaque, int):  # not every decoder passes the number on
                self.moved[twin.frame.opaque] = time
            yield replace(twin, time=time, duration=max(stay - place * step, step))

    @property
    def interval(self) -> Fraction:
        """Median time between two frames so far, in seconds; at first as the stream claims."""
        if self._gaps:
            return median_low(self._gaps)
        rate = self._stream.guessed_rate
        return 1 / rate if rate and rate <= _FASTEST else _FALLBACK_INTERVAL

    def _shape(self, frame: VideoFrame) -> FrameShape:
        # PyAV does not expose a frame's aspect ratio; the decoder's is that of the frame it returned last.
        aspect = self._stream.codec_context.sample_aspect_ratio
        # A display orientation in the stream (H.264, HEVC) holds until the next key frame; FFmpeg attaches it
        # only to the frame that carries it. A matrix in the container is attached to every frame.
        if frame.key_frame or frame.side_data.get("DISPLAYMATRIX"):
            self._rotation = frame_rotation(frame)
        return FrameShape(frame.width, frame.height, aspect or Fraction(1), self._rotation)

    def _ticks(self, frame: VideoFrame) -> int | None:
        if self._unsorted is None:
            return frame.pts
        return heapq.heappop(self._unsorted) if self._unsorted else None

    def _frames(self) -> Iterator[VideoFrame]:
        too_large = 0  # packets in a row that were refused for their size
        for packet in self._numbered_packets():
            if packet is not None and packet.is_corrupt:
                self.damaged = True
            if self._unsorted is not None and packet is not None and packet.size and packet.dts is not None:
                heapq.heappush(self._unsorted, packet.dts)
            # A decoder without memory skips frames as if they were damaged, sometimes without an error.
            room = decoding_bytes(self._stream)
            check_room(room)
            try:
                frames = self._stream.decode(packet)
            except av.error.FFmpegError as error:
                check_shortage(error, room)
                too_large = too_large + 1 if is_too_large(self._stream) else 0
                self.too_large |= too_large > 0
                if too_large > 1:  # a single one is a damaged packet
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
                    return  # a decoder that has returned no frame yet holds no usable one
                packet = None
            if packet is None or (packet.size == 0 and packet.dts is None):
                yield None  # makes the decoder return the frames that it still holds
                return
            yield packet


def _make_convertible(frame: VideoFrame) -> None:
    """Replace the colour tags that the scaler refuses by those that players assume instead."""
    if frame.colorspace not in _MATRICES:
        frame.colorspace = _BT2020 if frame.colorspace == _BT2020_CONSTANT else _UNSPECIFIED
    if frame.color_trc not in _TRANSFERS:
        frame.color_trc = _UNSPECIFIED
    if frame.color_primaries not in _PRIMARIES:
        frame.color_primaries = _UNSPECIFIED


def _bytes(frame: VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)
