"""Writes an MP4 file with the frames of the input video and the generated sound.

Video packets are copied bit for bit where MP4 can hold them. They are moved in time so that the first
presented frame is at 0, where the sound starts too. Frames hidden by an edit list stay hidden: those before
the first presented frame are kept for the decoder at negative times, those after the last one are dropped.
Where a copy would not show what the input shows, the frames are encoded again as H.264, and the result says
why. Rotation, sample aspect ratio, colour tags and times are the same either way.

Tags, chapters and text subtitles are kept, see :mod:`thinksound.media.kept`. The input's own sound is
replaced, and what MP4 cannot hold is left out; notes say so.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ..rates import MAX_DURATION_S
from .files import check_output, whole_file
from .kept import add_subtitles, dolby_vision, find_kept
from .playertags import ROOM, room, write_player_tags
from .probe import VideoInfo, check_unchanged, open_video
from .timeline import PresentedFrames
from .transcode import canvas_of, encode_h264

if TYPE_CHECKING:
    from torch import Tensor

    from .decode import DecodedVideo

SUFFIXES = (".mp4",)

_COPIED = {"h264", "hevc", "av1", "vp9", "mpeg4"}  # codecs that MP4 can hold and players know
_AAC_BIT_RATE = 192_000
_AAC_FRAME = 1024  # samples
_HDR = {16, 18}  # transfer functions PQ and HLG (ITU-T H.273)
_COARSEST = Fraction(1, 90_000)  # s; coarsest unit of the video track's times
_LISTED = 4  # values that a message lists
# s; some tools that copy MP4 files with B-frames, such as FFmpeg before version 6, assume that the sample
# decoded last has the average length. If its length differs by more than this, they change the duration.
_GUESSED = Fraction(1, 20)
_ROUNDING = Fraction(1, 1000)  # s; Matroska and Flash store no finer times
_MUXER = {
    "movflags": "faststart+use_metadata_tags",
    # Unit of the edit list: with the default, 1/1000 s, the end would be up to 22 samples off.
    "movie_timescale": "90000",
    # Needed to write Dolby Vision records and descriptions of spherical video.
    "strict": "unofficial",
}


@dataclass(frozen=True)
class MuxResult:
    """How the frames were written, and what else of the input was changed."""

    path: Path
    copied: bool  # whether the video packets are the input's, bit for bit
    reason: str  # why the frames were encoded again; empty when copied
    notes: tuple[str, ...] = ()  # sentences about what was replaced, reduced or left out


def mux(
    video: DecodedVideo,
    pcm16: Tensor,
    sample_rate: int,
    output: Path | str,
    metadata: Mapping[str, str],
) -> MuxResult:
    """Write the frames of ``video``, up to its cut if it has one, with new sound.

    Args:
        video: a decoded video; its file is read again.
        pcm16: int16 (channels, A), as long as the video.
        sample_rate: in Hz.
        output: an .mp4 file; it appears whole or not at all.
        metadata: texts stored in the file under these names.

    Raises:
        OutputError: the ending is not .mp4, the folder is missing or not writable, or the disk is full.
        MediaError: the video was removed or changed meanwhile.
    """
    output = check_output(output, SUFFIXES, inputs=(video.info.path,))
    check_unchanged(video.info)
    reason, packets = _plan_copy(video)
    with (
        open_video(video.info.path) as (container, stream),
        whole_file(output) as temporary,
        create_mp4(temporary) as target,
    ):
        dolby = dolby_vision(stream)
        lost = ["Dolby Vision metadata"] if reason and dolby else []
        kept = find_kept(video.info.path, container, stream, video.timeline, lost)
        own = {key: value.replace("\0", " ") for key, value in metadata.items()}
        names = {name.lower() for name in own}
        target.metadata.update(
            {key: text for key, text in kept.tags.items() if key.lower() not in names} | own
        )
        target.metadata.update(room(target.metadata))
        if kept.chapters:
            target.set_chapters(kept.chapters)
        notes = kept.notes
        if reason and stream.codec_context.color_trc in _HDR:
            notes = ("HDR frames were reduced to 8 bits", *notes)
        time_base = _output_time_base(stream.time_base or _COARSEST)
        if reason:
            end = video.timeline.end
            frames = takewhile(lambda timed: timed.time < end, PresentedFrames(container, stream))
            picture: Iterator[Packet[Any]] = encode_h264(
                target, frames, video.info, video.timeline, time_base
            )
        else:
            picture = _copy(target, container, stream, video.info, packets, time_base)
            if dolby and not dolby.compatibility and video.info.codec == "hevc":
                target.streams.video[0].codec_context.codec_tag = "dvh1"  # others would show wrong colours
        target.streams.video[0].metadata.update(kept.track_tags)
        sound: Iterator[Packet[Any]] = encode_sound(target, pcm16, sample_rate)
        texts = [add_subtitles(target, subtitles) for subtitles in kept.subtitles]
        for packet in heapq.merge(picture, sound, *texts, key=decoded_at):
            target.mux(packet)
    return MuxResult(output, copied=not reason, reason=reason, notes=notes)


@contextmanager
def create_mp4(path: Path) -> Iterator[OutputContainer]:
    """Open a new MP4 at ``path``; it is finished when the block ends."""
    name = f"file:{path.absolute()}"
    with av.open(name, "w", format="mp4", container_options=_MUXER, metadata_errors="replace") as target:
        yield target
    if ROOM in target.metadata:
        write_player_tags(path, target.metadata)


def decoded_at(packet: Packet[Any]) -> Fraction:
    """Return the decoding time of a packet in seconds, by which packets are ordered in the file."""
    assert packet.dts is not None  # encoders and _copy set it
    return packet.dts * packet.time_base


@dataclass(frozen=True)
class _PacketTimes:
    """Times of a packet for the muxer, in units of the output's time base."""

    pts: int
    dts: int
    duration: int


def _plan_copy(video: DecodedVideo) -> tuple[str, list[_PacketTimes]]:
    """Return why a copy would not show what the input shows, and the times of the packets to copy.

    The reason is empty, and the list is not, if a copy is right.
    """
    timeline = video.timeline
    changes = [] if timeline.constant_shape else [_describe_changes(video)]
    if video.info.codec not in _COPIED:
        return "; ".join([f"MP4 is not made for {video.info.codec} pictures", *changes]), []
    if timeline.damaged:
        return "; ".join(["the video is damaged", *changes]), []
    if changes:
        return changes[0], []
    shown: list[Fraction] = []  # s; presentation times of the packets to copy
    stored: list[Fraction | None] = []  # s; their decoding times
    visible: list[Fraction] = []  # s; presentation times of the frames that the input shows
    surplus = False  # whether a later frame that must stay hidden was met: copying stops before the first
    with open_video(video.info.path) as (container, stream):
        time_base = _output_time_base(stream.time_base or _COARSEST)
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            return "AVI does not store when pictures are shown", []
        coded = (packet for packet in container.demux(stream) if packet.size)
        for number, packet in enumerate(coded):
            if packet.pts is None:
                return "the container does not store when pictures are shown", []
            if shown and packet.has_sidedata("new_extradata"):
                return "the coding parameters change", []
            time = timeline.moved.get(number, packet.pts * packet.time_base)
            decoded = None if packet.dts is None else packet.dts * packet.time_base
            is_visible = timeline.start <= time < timeline.end and not packet.is_discard
            if is_visible and surplus:
                why = "the cut falls between" if timeline.cut else "an edit list hides some of the"
                return f"{why} pictures that depend on each other", []
            if is_visible:
                visible.append(time)
            elif time >= timeline.start:
                surplus = True
            if not surplus:
                shown.append(time)
                stored.append(decoded)
            elif decoded is not None and decoded >= timeline.end:
                break  # all that follows is shown even later
    if tuple(sorted(visible)) != timeline.times:
        return "the packets do not correspond to the pictures one to one", []

    def ticks(time: Fraction) -> int:
        return round((time - timeline.start) / time_base)

    pts, end = [ticks(time) for time in shown], ticks(timeline.end)
    given = [None if time is None else ticks(time) for time in stored]
    dts = _decoding_times(pts, given, end, time_base)
    if dts is None:
        return "its B-frames, copied, would not last as long as the sound", []
    # The muxer ends the edit list with the packet that ends last. A sample lasts until the next one is
    # decoded, so only the last one takes its duration from here.
    durations = [*(end - time for time in pts[:-1]), dts[-1] - dts[-2]]
    return "", [_PacketTimes(*times) for times in zip(pts, dts, durations, strict=False)]


def _describe_changes(video: DecodedVideo) -> str:
    """Say what changes from frame to frame, and to which size all frames are scaled."""
    shapes, canvas = video.timeline.shapes, canvas_of(video.info, video.timeline)
    kinds = {
        "the frame size": [f"{shape.width}x{shape.height}" for shape in shapes],
        "the sample aspect ratio": [f"{shape.sample_aspect_ratio}" for shape in shapes],
        "the rotation": [f"{shape.rotation} degrees" for shape in shapes],
    }
    changes = []
    for kind, values in kinds.items():
        different = list(dict.fromkeys(values))
        if len(different) > 1:
            more = f" and {len(different) - _LISTED} more" if len(different) > _LISTED else ""
            changes.append(f"{kind} changes ({', '.join(different[:_LISTED])}{more})")
    return f"{', '.join(changes)}; all frames are scaled to fit {canvas.width}x{canvas.height}"


def _copy(
    target: OutputContainer,
    container: InputContainer,
    stream: VideoStream,
    info: VideoInfo,
    packets: list[_PacketTimes],
    time_base: Fraction,
) -> Iterator[Packet[VideoStream]]:
    """Add a video stream to ``target`` and return the input's packets with the times of ``packets``."""
    copy = target.add_stream_from_template(stream, opaque=True)
    copy.time_base = time_base
    copy.codec_context.sample_aspect_ratio = info.sample_aspect_ratio
    if info.codec == "hevc" and not _parameters_are_in_band(stream.codec_context.extradata or b""):
        copy.codec_context.codec_tag = "hvc1"  # QuickTime plays HEVC with no other tag

    def moved() -> Iterator[Packet[VideoStream]]:
        source = (packet for packet in container.demux(stream) if packet.size)
        for packet, times in zip(source, packets, strict=False):
            packet.time_base = time_base
            packet.pts, packet.dts, packet.duration = times.pts, times.dts, times.duration
            packet.stream = copy
            yield packet

    return moved()


def _output_time_base(time_base: Fraction) -> Fraction:
    """Return a time base that divides the input's and is at most half a sample of sound at 44.1 kHz."""
    if time_base.denominator * MAX_DURATION_S >= 2**32:
        return _COARSEST  # MP4 stores durations of frames in 32 bits
    return Fraction(1, time_base.denominator * math.ceil(_COARSEST.denominator / time_base.denominator))


def _decoding_times(
    shown: list[int], stored: Sequence[int | None], end: int, time_base: Fraction
) -> list[int] | None:
    """Return the decoding time of each packet, followed by the time at which the last sample ends.

    MP4 stores durations between decoding times. Readers take the length of the track from their sum or from
    the packet that ends last, so both must give the presented length. The stored times are used if they do.
    Else a frame is decoded when the frame ``delay`` places before it in presentation order is shown, with the
    smallest delay that makes no frame late. Matroska needs this, because it stores no decoding times. Where
    the last frames stay for other times than the first, the last packets are decoded later than that.

    Args:
        shown: presentation times in the order of decoding.
        stored: decoding times of the input.
        end: the time when the last frame disappears.
        time_base: unit of all of these, in seconds.

    Returns:
        None if no times were found that give the presented length.
    """
    for times in _possible_decoding_times(shown, stored, end):
        ends = [*times, times[0] + end - min(shown)]
        if _lasts(ends, shown, end, time_base):
            return ends
    return None


def _possible_decoding_times(shown: list[int], stored: Sequence[int | None], end: int) -> Iterator[list[int]]:
    given = [time for time in stored if time is not None]
    if len(given) == len(shown):
        yield given
    order = sorted(shown)
    places = {time: place for place, time in enumerate(order)}
    delay = max(index - places[time] for index, time in enumerate(shown))
    step = median_low([after - time for time, after in pairwise([*order, end])])
    times = [order[0] - step * place for place in range(delay, 0, -1)] + order[: len(order) - delay]
    yield times
    if delay:
        # The sample of the frame shown last lasts as long as that frame. Where that leaves too little time to
        # decode the others, the packet decoded last ends with the video instead.
        lead = max(delay * step, order[-1] - shown[-1])
        yield _decoded_late(times, shown, end, delay, lead, order[-1] - lead, shown.index(order[-1]))
        before = order[max(len(order) - 2 - delay, 0)]
        lead = max(min(delay * step, (shown[-1] - before) // 2), delay)
        yield _decoded_late(times, shown, end, delay, lead, shown[-1] - lead, None)


def _decoded_late(
    times: list[int], shown: list[int], end: int, delay: int, lead: int, last: int, exact: int | None
) -> list[int]:
    """Decoding times from ``lead`` before the first frame to ``last``, close to ``times`` in between.

    No sample, counted from its presentation time, lasts beyond ``end``; the one at index ``exact`` lasts
    exactly until ``end``.
    """
    first = min(shown)
    late = [*(first - lead * place // delay for place in range(delay, 0, -1)), *times[delay:-1], last]
    for index in reversed(range(1, len(late) - 1)):
        after = late[index + 1]
        latest = after - (end - shown[index])
        late[index] = latest if index == exact else min(max(late[index], latest), after - 1)
    return late


def _lasts(times: list[int], shown: list[int], end: int, time_base: Fraction) -> bool:
    """Whether packets decoded at ``times`` give the presented length, by both ways of measuring it."""
    durations = [after - time for time, after in pairwise(times)]
    ends = [pts + duration for pts, duration in zip(shown, durations, strict=True)]
    late = durations[-1] - Fraction(sum(durations), len(durations))
    return (
        min(durations) > 0
        and all(time <= pts for time, pts in zip(times, shown, strict=False))
        and ends[-1] <= end
        and abs(max(ends) - end) * time_base <= _ROUNDING
        and (times[:-1] == shown or abs(late) * time_base <= _GUESSED)
    )


def _parameters_are_in_band(extradata: bytes) -> bool:
    """Whether HEVC extradata in MP4's form holds no parameter sets, so that the packets must hold them."""
    return len(extradata) > 22 and extradata[0] == 1 and extradata[22] == 0


def encode_sound(target: OutputContainer, pcm16: Tensor, sample_rate: int) -> Iterator[Packet[AudioStream]]:
    """Add an AAC stream, mono or stereo, to ``target`` and return its packets.

    The first packet only primes the decoder: it lies before 0 and is not heard.

    Args:
        target: the file to be written; its header must not be written yet.
        pcm16: int16 (channels, A), one or two channels.
        sample_rate: in Hz.
    """
    layout = ("mono", "stereo")[len(pcm16) - 1]
    encoder = target.add_stream("aac", rate=sample_rate, layout=layout, bit_rate=_AAC_BIT_RATE)
    samples = pcm16.cpu().numpy()

    def encoded() -> Iterator[Packet[AudioStream]]:
        for position in range(0, samples.shape[1], _AAC_FRAME):
            block = samples[:, position : position + _AAC_FRAME]
            frame = av.AudioFrame.from_ndarray(
                block.astype(np.float32, order="C") / 32768, format="fltp", layout=layout
            )
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, position, Fraction(1, sample_rate)
            yield from encoder.encode(frame)
        yield from encoder.encode(None)

    return encoded()
