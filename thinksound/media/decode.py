"""Decodes a video once and picks the frames of all views on the way.

:mod:`thinksound.media.views` says how a view picks its frames. "nearest" picks the same frames as
ThinkSound's published extractor: the clock starts at the time of the first frame, and each list is cut to
the view's count for the duration, or extended by repeating its last entry. A filter graph
(``buffer -> format=rgb24``) converts pixels to RGB, because it agrees with that extractor for interlaced and
10-bit video too; a plain conversion does not.

Deliberate deviations from the original:

* Frames are turned upright before the transforms; the original sees phone videos sideways.
* The duration is the time from the first presented frame to the end of the last one. The original takes the
  container's, which includes frames hidden by an edit list and sound that outlasts the video.
* Clips from 0.1 s on work, and so do clips whose frames all fall on one tick: they show the last frame. The
  original gets no frame from these.
* AVI with B-frames stores no usable times: sorted decoding times are used, where the original guesses.
* Damaged files are used as far as they decode.

Memory holds the picked frames only, each already reduced to its view's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from ..errors import InputError, MediaError, printable
from ..rates import MAX_DURATION_S, MIN_DURATION_S
from .editlist import edit_list_end
from .picking import frame_list
from .probe import (
    VideoInfo,
    claimed_duration,
    describe_video,
    file_version,
    first_frame,
    open_video,
    undecodable,
)
from .shortage import check_shortage
from .timeline import FrameShape, PresentedFrames, TimedFrame, Timeline
from .views import View

MAX_FRAMES = 250_000  # three minutes at 1,388 fps; each takes about a kilobyte until the video is written

_ROUNDING = Fraction(2, 1000)  # s; of the ends in edit lists, which count milliseconds
_MISSING = Fraction(1, 2)  # s; a note is given if more is missing or silent at the end
_UNDECODABLE = Fraction(1, 10)  # s; a note is given if this much or more is missing at the beginning


@dataclass(frozen=True)
class DecodedVideo:
    """The frames that the encoders see, and the time that they span."""

    info: VideoInfo
    timeline: Timeline  # every presented frame, for the muxer
    views: tuple[View, ...]  # that the frames were picked for
    frames: Mapping[str, Tensor]  # by view name: uint8 (frames, size, size, 3)
    # Seconds that the frames cover. If ticks drift, these are others than the duration: more if the video
    # starts late, less if its last frame stays.
    features_duration_s: float
    notes: tuple[str, ...]  # sentences the user should read, such as "... the file is damaged ..."

    @property
    def start_s(self) -> float:
        """Presentation time of the first frame, in seconds."""
        return float(self.timeline.start)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last one, or to the cut."""
        return float(self.timeline.duration)

    @property
    def frame_count(self) -> int:
        """Number of presented frames, of which the views pick some."""
        return len(self.timeline.times)


def decode_video(
    path: Path | str,
    views: Sequence[View],
    duration_s: float | None = None,
    progress: Callable[[float], None] | None = None,
    drifting: bool = False,
) -> DecodedVideo:
    """Decode a video once; pick, rotate and reduce its frames for every view.

    Args:
        path: a video file.
        views: what the encoders want to see.
        duration_s: seconds to use from the beginning; the whole video by default.
        progress: called with the share done, 0 to 1.
        drifting: read as published MMAudio does (see :mod:`thinksound.media.picking`): with drifting ticks
            for every view, without applying the rotation, and with PyAV's plain conversion to RGB.

    Raises:
        InputError: ``duration_s`` is not a number between 0.1 and 180.
        MediaError: :func:`probe` refuses the file; or it is shorter than 0.1 s or longer than 180 s, has more
            than 250,000 frames, or is so damaged that less than 0.1 s decodes. With ``drifting``: the frames
            do not fill a view.
        PlacementError: out of memory.
    """
    if duration_s is not None and not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        raise InputError(
            f"a duration of {duration_s:g} s; allowed are {MIN_DURATION_S:g} to {MAX_DURATION_S:g} s"
        )
    progress = progress or (lambda _: None)
    with open_video(path) as (container, stream):
        if duration_s is not None or not _claims_more(container):
            return _Decoder(Path(path), container, stream, views, duration_s, drifting).run(progress)
        first_frame(Path(path), container, stream)  # damage is reported before a wrong length
        if _goes_on_after(container, stream, MAX_DURATION_S):
            raise _too_long(Path(path))
    # The claim was wrong. The file is opened again, because not every container can seek to its start.
    with open_video(path) as (container, stream):
        return _Decoder(Path(path), container, stream, views, duration_s, drifting).run(progress)


def _too_long(path: Path) -> MediaError:
    return MediaError(
        f"{path}: longer than {MAX_DURATION_S:g} s; use the first part only (--duration S) or cut the video"
    )


def _claims_more(container: InputContainer) -> bool:
    return container.duration is not None and container.duration / av.time_base > MAX_DURATION_S


def _goes_on_after(container: InputContainer, stream: VideoStream, limit_s: float) -> bool:
    """Whether a packet later than ``limit_s`` confirms that the video is as long as the container claims."""
    if not stream.time_base:
        return False
    limit = (stream.start_time or 0) + math.ceil(limit_s / stream.time_base)
    try:
        container.seek(limit, stream=stream)
        return any(
            packet.pts is not None and packet.pts > limit and not packet.is_discard
            for packet in container.demux(stream)
        )
    except av.error.FFmpegError as error:
        check_shortage(error)
        return False  # the file cannot be searched; decoding finds out


class _Decoder:
    """The state of one pass over a video."""

    def __init__(
        self,
        path: Path,
        container: InputContainer,
        stream: VideoStream,
        views: Sequence[View],
        duration_s: float | None,
        drifting: bool,
    ) -> None:
        self._path = path
        self._container = container
        self._stream = stream
        self._version = file_version(path)
        # The exact fraction of the float 0.1 is slightly more than 1/10 and would include a frame at 1/10 s.
        self._cut = None if duration_s is None else Fraction(duration_s).limit_denominator(1_000_000)
        self._limit_s = duration_s if duration_s is not None else MAX_DURATION_S
        self._lists = [frame_list(view, self._limit_s, self._cut, drifting) for view in views]
        self._drifting = drifting
        self._source = PresentedFrames(container, stream)
        self._to_rgb: _Converter = _to_plain_rgb if drifting else _ToRGB()
        self._edit_list_end: Fraction | None = None
        if container.format.name.startswith("mov"):
            self._edit_list_end = edit_list_end(path, stream.id)

    def run(self, progress: Callable[[float], None]) -> DecodedVideo:
        times: list[Fraction] = []
        shapes: dict[FrameShape, None] = {}  # in the order of their first appearance
        info: VideoInfo | None = None
        shown: TimedFrame | None = None  # the frame on screen until the next one
        expected_s = min(self._limit_s, claimed_duration(self._container) or self._limit_s)
        reached_cut = False
        for timed in self._source:
            elapsed = timed.time - (times[0] if times else timed.time)
            if self._cut is None and elapsed > MAX_DURATION_S:
                raise _too_long(self._path)
            if info is None:
                info = describe_video(self._path, self._container, self._stream, timed.frame, self._version)
            picture = _Picture(timed, self._to_rgb)
            for frames in self._lists:
                frames.see(timed, picture.rgb)
            if self._cut is not None and elapsed >= self._cut:
                reached_cut = True
                if all(frames.full for frames in self._lists):
                    break
            else:
                if len(times) == MAX_FRAMES:
                    raise MediaError(
                        f"{self._path}: more than {MAX_FRAMES:,} frames; "
                        "lower its frame rate or cut the video"
                    )
                times.append(timed.time)
                shapes[timed.shape] = None
            shown = timed
            progress(min(1.0, float(elapsed) / expected_s))
        if info is None or shown is None:
            raise undecodable(self._path, self._source.too_large)
        timeline = self._timeline(info.codec, times, tuple(shapes), shown, reached_cut)
        covered_s = self._shrunk_duration() if self._drifting else float(timeline.duration)
        result = DecodedVideo(
            info=info,
            timeline=timeline,
            views=tuple(frames.view for frames in self._lists),
            frames={frames.view.name: frames.finish(frames.view.count(covered_s)) for frames in self._lists},
            features_duration_s=covered_s,
            notes=tuple(printable(note) for note in self._notes(info, timeline, covered_s)),
        )
        progress(1.0)
        return result

    def _shrunk_duration(self) -> float:
        """Seconds that the drifting lists of all views cover.

        Raises:
            MediaError: a list has fewer frames than its view needs.
        """
        seconds = min([self._limit_s, *(frames.count / frames.view.fps for frames in self._lists)])
        if any(frames.count < frames.view.count(seconds) for frames in self._lists):
            needed = max(frames.view.count(0) / frames.view.fps for frames in self._lists)
            raise MediaError(
                f"{self._path}: the original's reader finds frames for {seconds:.2f} s of this video; "
                f"at least {needed:.2f} s are needed; use the default reader or a longer video"
            )
        return seconds

    def _timeline(
        self,
        codec: str,
        times: list[Fraction],
        shapes: tuple[FrameShape, ...],
        last: TimedFrame,
        reached_cut: bool,
    ) -> Timeline:
        end = last.time + (last.duration or self._source.interval)
        announced = None if self._source.damaged else self._edit_list_end
        # Edit lists count milliseconds: a smaller difference is rounding.
        if announced is not None and announced > last.time and abs(announced - end) > _ROUNDING:
            end = announced
        cut = False
        # A frame stays until the next one, however short the duration that the container stores for it.
        if self._cut is not None and (reached_cut or end > times[0] + self._cut):
            end, cut = times[0] + self._cut, True
        duration_s = float(end - times[0])
        if duration_s > MAX_DURATION_S:
            raise _too_long(self._path)
        if duration_s < MIN_DURATION_S:
            why = ", the rest is damaged" if self._source.damaged else ""
            still = f" (this is a still picture: one {codec} frame)" if len(times) == 1 else ""
            raise MediaError(
                f"{self._path}: only {duration_s:.2g} s of moving pictures{why}; "
                f"at least {MIN_DURATION_S:g} s are needed{still}"
            )
        source = self._source
        return Timeline(tuple(times), end, cut, shapes, source.damaged, source.moved, source.lost_start)

    def _notes(self, info: VideoInfo, timeline: Timeline, covered_s: float) -> tuple[str, ...]:
        duration_s = float(timeline.duration)
        uncovered = (
            f"{self._path}: the original's reader finds frames for the first {covered_s:.2f} s of "
            f"{duration_s:.2f} s; the sound is silent after them"
        )
        shrunk = uncovered if covered_s + _MISSING < duration_s else ""
        return tuple(note for note in (info.choice, *self._incomplete(info, timeline), shrunk) if note)

    def _incomplete(self, info: VideoInfo, timeline: Timeline) -> tuple[str, ...]:
        path, announced_end_s = self._path, info.announced_end_s
        lost_start_s = float(timeline.lost_start) if timeline.lost_start >= _UNDECODABLE else 0.0
        lost_end_s = 0.0
        # In an undamaged file, only Matroska's claim is more reliable than the frames themselves.
        believed = timeline.damaged or info.container == "matroska,webm"
        if not timeline.cut and believed and announced_end_s and timeline.end + _MISSING < announced_end_s:
            lost_end_s = announced_end_s - float(timeline.end)
        if timeline.damaged:
            lost = [
                f"{seconds:.2f} s at the {place} are lost"
                for place, seconds in (("beginning", lost_start_s), ("end", lost_end_s))
                if seconds
            ]
            used = f"the {float(timeline.duration):.2f} s that decode are used"
            return (f"{path}: the file is damaged or incomplete; {', '.join([used, *lost])}",)
        notes = []
        if lost_start_s:
            notes.append(
                f"{path}: the first {lost_start_s:.2f} s are left out, because they depend on frames "
                "before the beginning of the file"
            )
        if lost_end_s:
            notes.append(
                f"{path}: the pictures end at {float(timeline.end):.2f} s of the {announced_end_s:.2f} s "
                "that the file announces; it may be incomplete"
            )
        return tuple(notes)


# Converts a decoded frame, given the degrees that turn it upright, to uint8 (height, width, 3).
_Converter = Callable[[VideoFrame, int], np.ndarray]


def _to_plain_rgb(frame: VideoFrame, rotation: int) -> np.ndarray:
    """Convert a frame as published MMAudio does: as stored, ignoring its rotation."""
    return frame.to_ndarray(format="rgb24")


class _ToRGB:
    """Converts frames to RGB; keeps its filter graph as long as size and format stay the same."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._graph = Graph()

    def __call__(self, frame: VideoFrame, rotation: int) -> np.ndarray:
        """Return the frame as uint8 (height, width, 3), turned upright."""
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if key != self._key:
            self._key, self._graph = key, Graph()
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            self._graph.link_nodes(
                source, self._graph.add("format", "pix_fmts=rgb24"), self._graph.add("buffersink")
            ).configure()
        try:
            self._graph.vpush(frame)
            rgb = self._graph.vpull().to_ndarray()
        except av.error.BlockingIOError as error:
            # The graph returns every frame at once, unless it could not allocate memory for it.
            raise MemoryError from error
        return np.ascontiguousarray(np.rot90(rgb, rotation // 90))


class _Picture:
    """A decoded frame, converted once, and only if a view picks it."""

    def __init__(self, timed: TimedFrame, to_rgb: _Converter) -> None:
        self._timed = timed
        self._to_rgb = to_rgb

    def rgb(self) -> np.ndarray:
        """The pixels: uint8 (height, width, 3), from `_Converter`."""
        return self._rgb

    @cached_property
    def _rgb(self) -> np.ndarray:
        return self._to_rgb(self._timed.frame, self._timed.shape.rotation)
