"""Opens video files and describes what they contain, after decoding the first frame.

A name is always opened as a local file, even if it looks like a URL. Only containers that keep everything in
one file are opened, so that a playlist cannot make the decoder read other files.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import av
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..errors import MediaError, printable
from .files import local_path
from .shortage import check_room, check_shortage, said, shortages_named

MAX_SIDE = 16_384  # pixels
# Of a frame: 8192x4352, the largest in the levels of H.264, HEVC, VP9 and AV1. Bounds a request's memory.
MAX_PIXELS = 35_651_584
MAX_FRAME_BYTES = 4 * MAX_PIXELS  # such as 8-bit RGBA or 10-bit 4:2:2 of that size
MIN_SIDE = 4  # pixels
MAX_ASPECT = 32  # long side over short side

SOFTWARE = "thinksound-cog"  # the tag "software" of our results begins with this

_LONGEST_CLAIM_S = 1e6  # twelve days; a longer claimed duration is ignored
_DURATION_TAG = re.compile(r"(\d{1,3}):([0-5]?\d):([0-5]?\d(?:\.\d{1,9})?)", re.ASCII)

# FFmpeg demuxers that read one file only. Text, playlists (hls, dash, concat), image sequences, devices and
# scripts are left out.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,mpegvideo,h264,hevc,vvc,av1,obu,ivf,"
    "m4v,h263,vc1,vc1test,dirac,mjpeg,gif,apng,asf,ogg,mxf,gxf,dv,rm,wtv,nut,nsv,nuv,swf,roq,yuv4mpegpipe,"
    # sound only; opened so that the message can say so instead of "damaged"
    "mp3,wav,w64,flac,aac,ac3,eac3,aiff,amr,au,caf,ape,wv,dts,truehd,mpc,mpc8,tta"
)
# Brands of HEIF and AVIF files. Those with a track (often avis, hevc, hevx, msf1) may hold moving frames.
_PICTURE_BRANDS = {"avif", "avis", "heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1"}
_GIVE = "give a file such as MP4, MOV, MKV, WebM or GIF"
_AGAIN = "copy or export the file again"
_BIG_FRAMES = 64 * 2**20  # bytes that the threads of a decoder may hold at once
_NOT_MOVING = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
# A track with fewer frames than _FEW is a cover if another track has _FEW times as many.
_FEW = 10


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video after its first frame was decoded."""

    path: Path
    container: str  # FFmpeg's name, e.g. "mov,mp4,m4a,3gp,3g2,mj2"
    codec: str
    width: int  # as stored, before rotation
    height: int
    rotation: int  # 0, 90, 180, 270; np.rot90(frame, rotation // 90) turns it upright
    pixel_format: str
    sample_aspect_ratio: Fraction  # width of one pixel over its height
    average_rate: Fraction | None  # frames per second as the container claims
    container_duration_s: float | None  # as the container claims; may include sound and hidden frames
    announced_end_s: float | None  # end of the video track, where the container states it separately
    streams: tuple[str, ...]  # one description per stream
    choice: str  # sentence that says which of several moving tracks is used; empty if there is only one
    version: tuple[int, int]  # of the file: size in bytes, time of its last change in ns


def probe(path: Path | str) -> VideoInfo:
    """Describe a video file.

    Raises:
        MediaError: the file is missing or damaged, or has no moving frames of a usable size.
    """
    with open_video(path) as (container, stream):
        version = file_version(Path(path))
        frame = first_frame(Path(path), container, stream)
        return describe_video(Path(path), container, stream, frame, version)


def describe_video(
    path: Path, container: InputContainer, stream: VideoStream, frame: VideoFrame, version: tuple[int, int]
) -> VideoInfo:
    """Describe an open video with the first frame ``frame``; ``version`` is that of the file when opened."""
    moving = choose_moving(path, container)
    return VideoInfo(
        path=path,
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        width=frame.width,
        height=frame.height,
        rotation=frame_rotation(frame),
        pixel_format=frame.format.name,
        sample_aspect_ratio=stream.sample_aspect_ratio or Fraction(1),
        average_rate=stream.average_rate or stream.guessed_rate,
        container_duration_s=claimed_duration(container),
        announced_end_s=_announced_end(container, stream),
        streams=tuple(
            _describe(each) + (", used" if len(moving) > 1 and each.index == stream.index else "")
            for each in container.streams
        ),
        choice=_choice(path, moving),
        version=version,
    )


def check_unchanged(info: VideoInfo) -> None:
    """Check that a video that was read before is still the same.

    Raises:
        MediaError: the file was removed or changed.
    """
    _check_file(info.path)
    if file_version(info.path) != info.version:
        raise MediaError(f"{info.path}: changed since it was read; start again when nothing writes to it")


def is_own_result(path: Path | str) -> bool:
    """Whether the tags of a file say that this package made it; False if it cannot be opened."""
    try:
        with open_media(path) as container:
            return container.metadata.get("software", "").startswith(SOFTWARE)
    except MediaError:
        return False


def file_version(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of the last change in ns, which differ when a file has changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def frame_rotation(frame: VideoFrame) -> int:
    """Return the rotation of a decoded frame in degrees, as in :attr:`VideoInfo.rotation`."""
    return round(frame.rotation / 90) % 4 * 90


@contextmanager
def open_media(path: Path | str) -> Iterator[InputContainer]:
    """Open a video or sound file.

    Raises:
        MediaError: the file is missing or damaged.
        PlacementError: out of memory, also inside the block.
    """
    path = local_path(path)
    _check_file(path)
    with shortages_named(path):
        try:
            container = av.open(
                # With this prefix, "http:x.mp4" or "-i.mp4" is still a file name.
                f"file:{path.absolute()}",
                mode="r",
                options={
                    "protocol_whitelist": "file",
                    "format_whitelist": DEMUXERS,
                    "max_pixels": str(MAX_PIXELS),
                },
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.FFmpegError):
                check_shortage(error)
            if not os.access(path, os.R_OK):
                raise MediaError(f"{path}: no permission to read this file") from None
            raise MediaError(f"{path}: {_why_unreadable(path)}") from error
        with container:
            yield container


@contextmanager
def open_video(path: Path | str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its video track.

    Raises:
        MediaError: the file is missing or damaged, or has no moving frames of a usable size.
        PlacementError: out of memory, also inside the block.
    """
    path = local_path(path)
    with open_media(path) as container:
        stream = _moving_pictures(path, container)
        _check_size(path, *_size(path, container, stream))
        size = frame_bytes(stream)
        if size > MAX_FRAME_BYTES:
            context = stream.codec_context
            raise MediaError(
                f"{path}: frames of {context.width}x{context.height} {context.pix_fmt} take "
                f"{size // 10**6} MB each; allowed are {MAX_FRAME_BYTES / 1e6:.0f} MB; "
                "scale the video or convert it to 8 or 10 bits"
            )
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        # Each thread may hold a frame. The result does not depend on the number of threads.
        threads = max(1, min(_BIG_FRAMES // size, _available_threads()))
        stream.codec_context.thread_count = threads
        yield container, stream


def frame_bytes(stream: VideoStream) -> int:
    """Memory that one decoded frame takes, in bytes."""
    context = stream.codec_context
    bits = context.format.padded_bits_per_pixel if context.format else 32
    return max(1, context.width * context.height * bits // 8)


def decoding_bytes(stream: VideoStream) -> int:
    """Memory that decoding one more packet may take, in bytes: a generous estimate."""
    return frame_bytes(stream) * (stream.codec_context.thread_count + 3) + 2**24


def _available_threads() -> int:
    """The number of threads that FFmpeg starts by itself: one more than usable cores, 16 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores + 1, 16) if cores > 1 else 1


def moving_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams of a file, without cover pictures and thumbnails."""
    return [stream for stream in container.streams.video if not stream.disposition & _NOT_MOVING]


def choose_moving(path: Path, container: InputContainer) -> list[VideoStream]:
    """Return the video tracks that move; the first of them is the one to use.

    It is the one that players show: the first one marked as default, or else the first. A cover or a title
    stored as an ordinary track, with one frame or a few, is returned only if nothing else moves. If the
    container does not say how many frames a track has, a part of the file is read to count them.
    """
    streams = moving_streams(container)
    streams = [stream for stream in streams if stream.codec_context is not None] or streams
    streams.sort(key=lambda stream: not stream.disposition & Disposition.default)
    if len(streams) < 2:
        return streams
    counts = {stream.index: stream.frames for stream in streams}
    if not container.format.name.startswith("mov") or not all(counts.values()):  # 0 in fragmented files
        counts = _count_frames(path, [stream.index for stream in streams])
    most = max(counts.values())
    moving = [
        stream for stream in streams if counts[stream.index] >= _FEW or 1 < counts[stream.index] > most / _FEW
    ]
    if container.metadata.get("major_brand", "").strip() in _PICTURE_BRANDS:
        moving = moving[:1]  # the other one holds its transparency
    return moving or sorted(streams, key=lambda stream: -counts[stream.index])[:1]


def _count_frames(path: Path, tracks: list[int]) -> dict[int, int]:
    """Count the frames of each track, until the first track has `_FEW` or any has `_FEW` squared."""
    counts = dict.fromkeys(tracks, 0)
    try:
        with open_media(path) as container:
            for packet in container.demux([container.streams[track] for track in tracks]):
                if packet.size:
                    counts[packet.stream.index] += 1
                if counts[tracks[0]] >= _FEW or max(counts.values()) >= _FEW**2:
                    break
    except av.error.FFmpegError as error:
        check_shortage(error)  # else the file is damaged; decoding finds out
    return counts


def _check_file(path: Path) -> None:
    try:
        # Libraries called later need the absolute path, and fail if it is too long for the system.
        place = path.absolute()
        if place.is_dir():
            raise MediaError(f"{path}: this is a directory; give one video file")
        if not place.exists():
            raise MediaError(f"{path}: no such file; check the name and the folder")
        if not place.is_file():
            raise MediaError(f"{path}: not a regular file; save the video to a file first")
        if place.stat().st_size == 0:
            raise MediaError(f"{path}: the file is empty (0 bytes); give a video file")
    except OSError as error:  # the name is too long, or the folder not accessible
        too_long = error.errno == errno.ENAMETOOLONG
        shorten = ", or move the file to a folder with a shorter path" if too_long else ""
        raise MediaError(f"{path}: cannot be opened ({said(error)}); check the name{shorten}") from None
    except ValueError as error:  # a null character
        raise MediaError(f"{path}: cannot be opened ({error}); check the name") from None


def _why_unreadable(path: Path) -> str:
    # Imported here because only this message needs it: Pillow recognises image files.
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.format in ("JPEG", "MPO") and _holds_mp4(path):
                return "this is a motion photo (a JPEG file with a video behind it); export the video from it"
            moves = getattr(image, "is_animated", False) and image.format != "MPO"
            return f"this is {'an animated' if moves else 'a still'} picture ({image.format}); {_GIVE}"
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    with path.open("rb") as file:
        head = file.read(4096)
    if b"\0" not in head:
        return (
            "not a video (it looks like a text file or a playlist); give a file such as MP4, MOV, MKV or WebM"
        )
    if head[4:8] == b"ftyp":
        return f"damaged (its index is missing: an incomplete download or recording); {_AGAIN}"
    return f"not a video that can be read, or damaged; {_GIVE}"


def _holds_mp4(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"ftyp") >= 0


def _moving_pictures(path: Path, container: InputContainer) -> VideoStream:
    kinds = Counter(
        "cover picture" if stream.disposition & _NOT_MOVING else f"{stream.type} stream"
        for stream in container.streams
    )
    found = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items())
    still_brand = container.metadata.get("major_brand", "").strip() in _PICTURE_BRANDS
    candidates = choose_moving(path, container)
    if still_brand and (not candidates or candidates[0].frames < 2):
        raise MediaError(f"{path}: this is a still picture (HEIF or AVIF); give a file with moving pictures")
    if not candidates:
        raise MediaError(
            f"{path}: no video stream ({found or 'no streams'} found); give a file with moving pictures"
        )
    stream = candidates[0]
    if stream.codec_context is None:
        raise MediaError(f"{path}: its video codec is unknown; convert the video to MP4 (H.264)")
    if container.format.name == "mjpeg" and "(MPO)" in _why_unreadable(path):
        raise MediaError(f"{path}: {_why_unreadable(path)}")
    if container.format.name in ("gif", "apng") and _is_single_packet(path):
        raise MediaError(f"{path}: this is a still picture (one frame); give a file with moving pictures")
    return stream


def _size(path: Path, container: InputContainer, stream: VideoStream) -> tuple[int, int]:
    context = stream.codec_context
    if not context.width and container.format.name in ("gif", "apng"):
        # The frames are larger than max_pixels allowed. These two formats give the size without decoding.
        with av.open(f"file:{path.absolute()}", options={"protocol_whitelist": "file"}) as unlimited:
            context = unlimited.streams.video[0].codec_context
            return context.width, context.height
    return context.width, context.height


def _is_single_packet(path: Path) -> bool:
    try:
        with av.open(f"file:{path.absolute()}", options={"protocol_whitelist": "file"}) as container:
            packets = (packet for packet in container.demux(video=0) if packet.size)
            next(packets, None)
            return next(packets, None) is None
    except av.error.FFmpegError as error:
        check_shortage(error)
        return False  # the file is damaged; decoding finds out


def _choice(path: Path, moving: list[VideoStream]) -> str:
    if len(moving) < 2:
        return ""
    used, *others = (
        f"track {stream.index + 1} ({stream.codec_context.codec.canonical_name}, "
        f"{stream.width}x{stream.height})"
        for stream in moving
    )
    why = "the default one" if moving[0].disposition & Disposition.default else "the first"
    return f"{path}: {len(moving)} video tracks move; {used}, {why}, is used, not {', '.join(others)}"


def _check_size(path: Path, width: int, height: int) -> None:
    if not width or not height:
        raise MediaError(f"{path}: damaged (no picture can be decoded); {_AGAIN}")
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_SIDE or long > MAX_ASPECT * short:
        raise MediaError(
            f"{path}: pictures of {width}x{height} pixels; allowed are {MIN_SIDE} to {MAX_SIDE} on a side "
            f"and at most {MAX_ASPECT}:1; scale the video first"
        )
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"{path}: frames of {width}x{height} = {width * height:,} pixels; "
            f"allowed are {MAX_PIXELS:,} (8192x4352); scale the video first"
        )


def is_too_large(stream: VideoStream) -> bool:
    """Whether the frame that the decoder has just refused was larger than allowed."""
    # Some decoders keep the size that they refused, others reset it to 0.
    return not 0 < stream.codec_context.width * stream.codec_context.height <= MAX_PIXELS


def refuse_growth(path: Path) -> NoReturn:
    """Raise `MediaError` for a video whose frames become larger than allowed."""
    raise _too_large(path)


def _too_large(path: Path) -> MediaError:
    return MediaError(
        f"{path}: its frames become larger than {MAX_PIXELS:,} pixels (8192x4352); scale the video first"
    )


def first_frame(path: Path, container: InputContainer, stream: VideoStream) -> VideoFrame:
    """Decode the first frame of a video that has just been opened.

    Raises:
        MediaError: no frame decodes.
    """
    too_large = False
    try:
        for packet in container.demux(stream):
            room = decoding_bytes(stream)
            check_room(room)
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                check_shortage(error, room)
                too_large = is_too_large(stream)
                continue  # the beginning is damaged; later packets may decode
            if frames:
                return frames[0]
    except av.error.FFmpegError as error:
        check_shortage(error)  # else the file ends in the middle of a packet
    raise undecodable(path, too_large)


def undecodable(path: Path, too_large: bool) -> MediaError:
    """Return the error for a video of which no frame decodes; ``too_large``: because of their size."""
    if too_large:
        return _too_large(path)
    return MediaError(f"{path}: damaged (no picture can be decoded); {_AGAIN}")


def claimed_duration(container: InputContainer) -> float | None:
    """Return the duration in seconds that a container claims; None if it is missing or implausible."""
    seconds = (container.duration or 0) / av.time_base
    return seconds if 0 < seconds <= _LONGEST_CLAIM_S else None


def _announced_end(container: InputContainer, stream: VideoStream) -> float | None:
    if container.format.name == "matroska,webm":
        tag = _DURATION_TAG.fullmatch(stream.metadata.get("DURATION", ""))
        if tag:
            hours, minutes, seconds = map(float, tag.groups())
            return hours * 3600 + minutes * 60 + seconds or None
    elif stream.duration and stream.time_base:
        seconds = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        return seconds if 0 < seconds <= _LONGEST_CLAIM_S else None
    return claimed_duration(container) if len(container.streams) == 1 else None


def _describe(stream: Stream) -> str:
    if isinstance(stream, VideoStream) and stream.codec_context is not None:
        rate = stream.average_rate
        fps = f", {float(rate):.4g} fps" if rate else ""
        cover = ", cover picture" if stream.disposition & _NOT_MOVING else ""
        return f"video: {stream.name} {stream.width}x{stream.height} {stream.pix_fmt}{fps}{cover}"
    if isinstance(stream, av.AudioStream) and stream.codec_context is not None:
        return f"audio: {stream.name} {stream.rate} Hz, {stream.layout.name}"
    # The name of an attachment is a file name, which may hold any characters.
    return f"{stream.type}: {printable(getattr(stream, 'name', None) or 'unknown')}"
