"""Collects what the MP4 keeps of its input besides the frames, and names what has to be left out.

The MP4 keeps the tags of the file (title, place, creation time, the workflow of a generator, ...), the
language and name of the video track, chapters, and text subtitles. Their times are counted from the first
frame and cut at the end of the last one. Dolby Vision records and static HDR metadata are part of the copied
track itself.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle, SubtitleSet
from av.video.stream import VideoStream

from ..errors import printable
from .playertags import ROOM
from .probe import open_media
from .shortage import check_shortage
from .timeline import Timeline

if TYPE_CHECKING:
    from av.container.core import Chapter

UNIT = Fraction(1, 90_000)  # s; of chapters and subtitles

MAX_TAG = 1 << 20  # characters; the workflow of a generator takes some 100,000
MAX_TAGS = 256
MAX_ALL_TAGS = 4 << 20  # characters
_MAX_CHAPTERS = 255  # the list of chapters in an MP4 counts them in one byte
_MAX_CUES = 5000  # of one track
_MAX_CUE = 10_000  # bytes

_TEXT_CODECS = {"mov_text", "subrip", "ass", "webvtt", "text"}
# Tags that describe the input file and would be wrong in the output. A timecode would become a track.
_OF_THE_FILE = {ROOM, "major_brand", "minor_version", "compatible_brands", "encoder", "duration", "timecode"}
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_APPLE_LOCATION = "com.apple.quicktime.location.iso6709"
_DOVI_BOX = re.compile(rb"\0\0\0\x20dv[cvw]C(.{5})", re.DOTALL)


@dataclass(frozen=True)
class Cue:
    """One subtitle text and when it is shown."""

    start: Fraction  # s after the first frame
    end: Fraction
    content: bytes  # a sample of MP4's text format, or the fields of an ASS line


@dataclass(frozen=True)
class Subtitles:
    """A subtitle track that MP4 can store."""

    template: SubtitleStream
    cues: list[Cue]


@dataclass(frozen=True)
class Kept:
    """What goes into the output besides the frames and the new sound."""

    tags: dict[str, str]  # of the file
    track_tags: dict[str, str]  # of the video track
    chapters: list[Chapter]
    subtitles: list[Subtitles]
    notes: tuple[str, ...]  # sentences about what is replaced or left out


@dataclass(frozen=True)
class DolbyVision:
    """The two numbers of a Dolby Vision record that decide how a file is labelled."""

    profile: int
    compatibility: int  # 0: only a Dolby Vision decoder shows the right colours


def find_kept(
    path: Path, container: InputContainer, stream: VideoStream, timeline: Timeline, lost: Iterable[str] = ()
) -> Kept:
    """Collect what can be kept of a file.

    Args:
        path: the file; subtitles are read from it.
        container: the same file, open.
        stream: the video track that is used.
        timeline: the times of that track's frames.
        lost: names of other things that are left out, for the note.
    """
    tags, dropped = _tags(container.metadata)
    chapters = _chapters(container.chapters(), timeline)
    wanted = [each for each in container.streams.subtitles if _codec(each) in _TEXT_CODECS]
    cues = _read_cues(path, stream, wanted, timeline) if wanted else {}
    subtitles = [Subtitles(each, cues[each.index]) for each in wanted if cues[each.index]]
    surplus = len(chapters) - _MAX_CHAPTERS
    chapters = chapters[:_MAX_CHAPTERS]
    more = [f"{surplus} chapter{'s' * (surplus > 1)}"] if surplus > 0 else []
    left_out = [*_left_out(container, stream), *lost, *dropped, *more]
    notes = [_sound_note(container)] if container.streams.audio else []
    if left_out:
        notes.append(f"left out: {', '.join(left_out)}")
    return Kept(tags, _track_tags(stream), chapters, subtitles, tuple(map(printable, notes)))


def dolby_vision(stream: VideoStream) -> DolbyVision | None:
    """Return the Dolby Vision record of a track in any container; None if there is none."""
    if _codec(stream) not in ("hevc", "av1", "h264"):
        return None
    # FFmpeg reads the record, but PyAV does not expose it. The header of an MP4 with this track contains it.
    header = io.BytesIO()
    options = {"movflags": "empty_moov", "strict": "unofficial"}
    try:
        with av.open(header, "w", format="mp4", container_options=options) as output:
            output.add_stream_from_template(stream, opaque=True)
            output.start_encoding()
    except av.error.FFmpegError as error:
        check_shortage(error)
        return None  # the parameters of the track are damaged
    found = _DOVI_BOX.search(header.getvalue())
    return DolbyVision(found[1][2] >> 1, found[1][4] >> 4) if found else None


def add_subtitles(target: OutputContainer, subtitles: Subtitles) -> Iterator[Packet[Any]]:
    """Add a subtitle track to ``target`` and return its packets."""
    source = subtitles.template
    encoder = None
    track: SubtitleStream
    if _codec(source) == "mov_text":
        track = target.add_stream_from_template(source, opaque=True)
    else:
        track = target.add_stream("mov_text")
        encoder = track.codec_context
        source.codec_context.open(strict=False)
        encoder.subtitle_header = source.codec_context.subtitle_header
        encoder.time_base = UNIT
    track.time_base = UNIT
    track.disposition = source.disposition
    track.metadata.update(_track_tags(source))

    def packets() -> Iterator[Packet[Any]]:
        for cue in subtitles.cues:
            start, stays = round(cue.start / UNIT), round((cue.end - cue.start) / UNIT)
            if encoder is None:
                packet: Packet[Any] = Packet(cue.content)
            else:
                packet = encoder.encode_subtitle(SubtitleSet.create(cue.content, 0, stays, start))
            packet.time_base, packet.pts, packet.dts, packet.duration = UNIT, start, start, stays
            packet.stream = track
            yield packet

    return packets()


def _tags(metadata: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the tags to store, and a remark about those that are dropped."""
    tags: dict[str, str] = {}
    dropped = total = 0
    for name, value in metadata.items():
        key = _CONTROL.sub("", name).strip()
        key = key.lower() if key.isupper() else key  # Matroska spells the same names in capitals
        base, _, language = key.rpartition("-")
        if not key or key.lower() in _OF_THE_FILE or (len(language) == 3 and metadata.get(base) == value):
            continue
        text = _CONTROL.sub(" ", value)
        usable = key.lower() != "creation_time" or _is_time(text)
        too_much = len(tags) == MAX_TAGS or total + len(text) > MAX_ALL_TAGS
        if not usable or too_much or len(text) > MAX_TAG or len(key) > 255:
            dropped += 1
        else:
            total += len(text)
            tags[key] = text
    lower = {key.lower(): value for key, value in tags.items()}
    if "location" not in lower and _APPLE_LOCATION in lower:
        tags["location"] = lower[_APPLE_LOCATION]
    remark = f"{dropped} tag{'s' * (dropped > 1)} (too long or not usable)"
    return tags, [remark] if dropped else []


def _is_time(text: str) -> bool:
    try:
        return 1970 <= datetime.fromisoformat(text).year < 2100  # MP4 counts seconds since 1904
    except ValueError:
        return False


def _track_tags(stream: Stream) -> dict[str, str]:
    tags = {name.lower(): _CONTROL.sub(" ", value) for name, value in stream.metadata.items()}
    kept = {}
    if re.fullmatch("[a-z]{3}", tags.get("language", "")) and tags["language"] != "und":
        kept["language"] = tags["language"]
    if 0 < len(tags.get("title", "")) <= _MAX_CUE:
        kept["title"] = tags["title"]
    return kept


def _chapters(found: list[Chapter], timeline: Timeline) -> list[Chapter]:
    chapters: list[Chapter] = []
    for chapter in found:
        unit = chapter["time_base"] or UNIT
        span = _within(chapter["start"] * unit, chapter["end"] * unit, timeline)
        if span:
            start, end = (int(time / UNIT) for time in span)
            title = _CONTROL.sub(" ", chapter["metadata"].get("title", ""))[:_MAX_CUE]
            chapters.append(
                {
                    "id": len(chapters) + 1,
                    "start": start,
                    "end": end,
                    "time_base": UNIT,
                    "metadata": {"title": title} if title else {},
                }
            )
    return chapters


def _within(start: Fraction, end: Fraction, timeline: Timeline) -> tuple[Fraction, Fraction] | None:
    """Cut a time span to the one in which frames are shown, and count it from the first frame.

    Returns:
        None if less than one `UNIT` remains.
    """
    start, end = max(start - timeline.start, Fraction(0)), min(end, timeline.end) - timeline.start
    return (start, end) if end - start >= UNIT else None


def _read_cues(
    path: Path, stream: VideoStream, wanted: list[SubtitleStream], timeline: Timeline
) -> dict[int, list[Cue]]:
    """Return the cues of each subtitle track by its index, in order and without overlaps."""
    cues: dict[int, list[Cue]] = {each.index: [] for each in wanted}
    with open_media(path) as container:
        tracks = [container.streams[index] for index in (stream.index, *cues)]
        try:
            for packet in container.demux(tracks):
                if packet.dts is None or not packet.size:
                    continue
                if packet.dts * packet.time_base > timeline.end:
                    if packet.stream.index == stream.index:
                        break  # all that follows is shown even later
                elif isinstance(packet.stream, SubtitleStream):
                    cues[packet.stream.index] += _cue(packet, timeline)
        except av.error.FFmpegError as error:
            check_shortage(error)  # else the file ends in the middle of a packet
    return {index: _one_at_a_time(track) for index, track in cues.items()}


def _cue(packet: Packet[Any], timeline: Timeline) -> Iterator[Cue]:
    unit = packet.time_base
    assert packet.dts is not None  # checked by the caller
    start = (packet.dts if packet.pts is None else packet.pts) * unit
    span = _within(start, start + (packet.duration or 0) * unit, timeline)
    if span is None or packet.size > _MAX_CUE:
        return
    if _codec(packet.stream) == "mov_text":
        content = bytes(packet)
        if content[:2] != b"\0\0":  # an empty text is a pause, which the muxer writes itself
            yield Cue(*span, content)
        return
    try:
        texts = packet.stream.decode2(packet) or ()
    except av.error.FFmpegError as error:
        check_shortage(error)
        return
    for text in texts:
        if isinstance(text, AssSubtitle) and text.ass:
            yield Cue(*span, text.ass)


def _one_at_a_time(cues: list[Cue]) -> list[Cue]:
    """Merge cues that are shown together into one, because MP4 cannot store overlapping cues."""
    cues = sorted(cues[:_MAX_CUES], key=lambda cue: cue.start)
    if all(before.end <= after.start for before, after in pairwise(cues)):
        return cues
    flat: list[Cue] = []
    shown: list[Cue] = []
    for start, end in pairwise(sorted({time for cue in cues for time in (cue.start, cue.end)})):
        shown = [cue for cue in shown if cue.end > start]
        while cues and cues[0].start <= start:
            shown.append(cues.pop(0))
        if shown and end - start >= UNIT:
            first, *more = (cue.content for cue in shown)
            texts = [line.split(b",", 8)[-1] for line in more]  # an ASS line has eight fields before its text
            flat.append(Cue(start, end, b"\\N".join([first, *texts])[:_MAX_CUE]))
    return flat


def _left_out(container: InputContainer, stream: VideoStream) -> Iterator[str]:
    counts: Counter[tuple[str, str]] = Counter()
    still = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    for each in container.streams:
        if isinstance(each, VideoStream) and each.index != stream.index:
            is_still = each.disposition & still or each.frames == 1
            counts["still picture" if is_still else "video track", ""] += 1
        elif isinstance(each, SubtitleStream) and _codec(each) not in _TEXT_CODECS:
            counts["subtitle track", _codec(each)] += 1
        elif each.type == "attachment":
            counts["attachment", ""] += 1
        elif each.type in ("data", "unknown") and each.discard != Discard.all:  # chapter tracks are discarded
            name = "timecode" if "timecode" in each.metadata else each.metadata.get("handler_name", "")
            counts["data track", _CONTROL.sub(" ", name or each.name or "").strip()[:40]] += 1
    for (kind, name), count in counts.items():
        yield f"{count} {kind}{'s' * (count > 1)}{f' ({name})' if name else ''}"


def _sound_note(container: InputContainer) -> str:
    tracks = container.streams.audio
    first = tracks[0]
    kind = "of unknown codec"
    if first.codec_context is not None:
        kind = f"{_codec(first)}, {first.rate} Hz, {first.layout.name}"
    several = f"{len(tracks)} tracks, the first " if len(tracks) > 1 else ""
    return f"the sound that the video had ({several}{kind}) is replaced"


def _codec(stream: Stream) -> str:
    return stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"
