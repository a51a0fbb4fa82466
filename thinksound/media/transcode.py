"""Encodes frames again as H.264, for inputs whose packets cannot be copied into MP4.

Every presented frame keeps its time. Interlaced frames are deinterlaced; odd sizes gain a copy of their last
row or column. Where size, sample aspect ratio or rotation change, all frames are scaled to fit one canvas on
which none loses detail, with black borders.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, groupby, pairwise

import av
import numpy as np
from av.container import OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from .probe import VideoInfo
from .shortage import check_room, check_shortage
from .timeline import FrameShape, TimedFrame, Timeline

# Visually lossless at usual viewing distances. Without B-frames, decoding and presentation times agree.
_X264 = {"crf": "18", "preset": "fast", "bf": "0"}
# Above 4K, a look-ahead of forty frames would take gigabytes, and so would one frame for each core. So there
# is no look-ahead, and the threads share one frame.
_LARGE = 4096 * 2304  # pixels
_X264_LARGE = {"rc-lookahead": "0", "refs": "1", "x264-params": "sliced-threads=1"}
_BYTES = 12  # per pixel, for the frames that one step may need: a generous estimate
_TURNS: dict[int, list[tuple[str, ...]]] = {  # filters that turn a frame upright, by its rotation
    0: [],
    90: [("transpose", "cclock")],
    180: [("hflip",), ("vflip",)],
    270: [("transpose", "clock")],
}
_MOST_PIXELS = 4096 * 4096  # of a canvas, unless a single frame has more
_YUV = "yuv420p"  # the only pixel format that every player shows


@dataclass(frozen=True)
class Canvas:
    """The size and form that all encoded frames get."""

    width: int  # even, as 4:2:0 needs it
    height: int
    sample_aspect_ratio: Fraction
    fits: bool  # whether frames are scaled to fit, with black borders; else sides differ by a pixel at most
    turns: bool  # whether frames are turned upright here; else players do it
    squares: bool  # whether frames are scaled to square pixels


def canvas_of(info: VideoInfo, timeline: Timeline) -> Canvas:
    """Return a canvas on which no frame of a video loses detail, up to `_MOST_PIXELS`."""
    first = timeline.shapes[0]
    if timeline.constant_shape:
        width, height = _even(first.width), _even(first.height)
        return Canvas(width, height, info.sample_aspect_ratio, fits=False, turns=False, squares=False)
    turns = len({shape.rotation for shape in timeline.shapes}) > 1
    shapes = [_upright(shape) for shape in timeline.shapes] if turns else timeline.shapes
    squares = len({shape.sample_aspect_ratio for shape in shapes}) > 1
    extents = [_extent(shape, squares) for shape in shapes]
    width, height = (max(sides) for sides in zip(*extents, strict=True))
    most = max(_MOST_PIXELS, *(width * height for width, height in extents))
    factor = min(1.0, math.sqrt(most / (width * height)))
    aspect = shapes[0].sample_aspect_ratio if turns else info.sample_aspect_ratio
    return Canvas(
        _even(width * factor),
        _even(height * factor),
        Fraction(1) if squares else aspect,
        fits=True,
        turns=turns,
        squares=squares,
    )


def _even(side: float) -> int:
    return max(2 * math.ceil(side / 2), 2)


def _upright(shape: FrameShape) -> FrameShape:
    if shape.rotation % 180 == 0:
        return replace(shape, rotation=0)
    return FrameShape(shape.height, shape.width, 1 / shape.sample_aspect_ratio, rotation=0)


def _extent(shape: FrameShape, squares: bool) -> tuple[float, float]:
    """Width and height of a frame in pixels; ``squares`` makes them square by stretching one side."""
    aspect = float(shape.sample_aspect_ratio) if squares else 1.0
    return shape.width * max(aspect, 1.0), shape.height / min(aspect, 1.0)


def encode_h264(
    target: OutputContainer,
    frames: Iterator[TimedFrame],
    info: VideoInfo,
    timeline: Timeline,
    time_base: Fraction,
) -> Iterator[Packet[VideoStream]]:
    """Add an H.264 stream to ``target`` and return its packets.

    Args:
        target: the file to be written; its header must not be written yet.
        frames: at least one frame; the time of the first becomes 0.
        info: of the video that the frames come from.
        timeline: of the same video.
        time_base: unit of the times written, in seconds.
    """
    first = next(frames)
    canvas = canvas_of(info, timeline)
    prepared = _prepared(chain([first], frames), canvas)
    _, picture = shown = next(prepared)

    large = _X264_LARGE if canvas.width * canvas.height > _LARGE else {}
    # The rate determines the H.264 level. It is measured, as a container may give the unit of its clock.
    rate = timeline.rate.limit_denominator(1001)
    encoder = target.add_stream("libx264", rate=rate, options=_X264 | large)
    encoder.time_base = time_base
    context = encoder.codec_context
    context.time_base = time_base
    context.width, context.height, context.pix_fmt = canvas.width, canvas.height, _YUV
    context.sample_aspect_ratio = canvas.sample_aspect_ratio
    context.color_range, context.colorspace = picture.color_range, picture.colorspace
    context.color_primaries, context.color_trc = first.frame.color_primaries, first.frame.color_trc
    matrix = first.frame.side_data.get("DISPLAYMATRIX")
    if isinstance(matrix, SideData) and not canvas.turns:
        encoder.set_display_matrix(np.frombuffer(bytes(matrix), np.int32).tolist())
    return _encoded(encoder, chain([shown], prepared), timeline.start, timeline.end)


def _encoded(
    encoder: VideoStream, shown: Iterator[tuple[Fraction, VideoFrame]], start: Fraction, end: Fraction
) -> Iterator[Packet[VideoStream]]:
    time_base = encoder.codec_context.time_base
    stays: deque[int] = deque()  # durations of the frames that are in the encoder
    last: VideoFrame | None = None
    for (time, frame), (after, _) in pairwise(chain(shown, [(end, last)])):
        assert frame is not None  # only the last entry, the end, has no frame
        frame.pts, frame.time_base = round((time - start) / time_base), time_base
        frame.pict_type = PictureType.NONE  # the encoder chooses
        stays.append(round((after - start) / time_base) - frame.pts)
        yield from _with_durations(_encode(encoder, frame), stays)
    yield from _with_durations(_encode(encoder, None), stays)


def _encode(encoder: VideoStream, frame: VideoFrame | None) -> list[Packet[VideoStream]]:
    try:
        return encoder.encode(frame)
    except av.error.FFmpegError as error:
        # x264 reports all failures with the same error.
        check_shortage(error, encoder.width * encoder.height * _BYTES + 2**24)
        raise


def _with_durations(packets: list[Packet[VideoStream]], stays: deque[int]) -> Iterator[Packet[VideoStream]]:
    for packet in packets:
        packet.duration = stays.popleft()
        yield packet


def _prepared(frames: Iterator[TimedFrame], canvas: Canvas) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Yield the filtered frames with their times; filters keep number and order of frames."""
    room = canvas.width * canvas.height * _BYTES + 2**24
    times: deque[Fraction] = deque()  # of the frames that are in the filters
    for _, alike in groupby(frames, _kind):
        graph: Graph | None = None
        for index, timed in enumerate(alike):
            if graph is None:
                graph = _filters(timed, canvas)
            # Deinterlacing needs increasing times.
            timed.frame.pts, timed.frame.time_base = index, Fraction(1, 25)
            times.append(timed.time)
            check_room(room)  # without memory, filters drop frames without an error
            graph.vpush(timed.frame)
            yield from _pulled(graph, times)
        assert graph is not None
        graph.vpush(None)
        yield from _pulled(graph, times)


def _kind(timed: TimedFrame) -> tuple[object, ...]:
    """The properties of a frame that a filter graph depends on."""
    frame = timed.frame
    return timed.shape, frame.format.name, frame.colorspace, frame.color_range


def _pulled(graph: Graph, times: deque[Fraction]) -> Iterator[tuple[Fraction, VideoFrame]]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield times.popleft(), frame


def _filters(timed: TimedFrame, canvas: Canvas) -> Graph:
    """Build the filters that bring frames like ``timed`` to progressive 4:2:0 of the canvas's size."""
    first, width, height = timed.frame, canvas.width, canvas.height
    graph = Graph()
    nodes = [
        graph.add(
            "buffer",
            video_size=f"{first.width}x{first.height}",
            pix_fmt=first.format.name,
            time_base="1/25",
            colorspace=str(first.colorspace),
            range=str(first.color_range),
        )
    ]
    if first.interlaced_frame:
        nodes.append(graph.add("bwdif", "mode=send_frame:deint=interlaced"))
    # RGB has no matrix to keep; players assume BT.709.
    colors = ":out_color_matrix=bt709:out_range=tv" if first.format.is_rgb else ""
    if canvas.fits:
        shape = timed.shape
        if canvas.turns:
            nodes += [graph.add(*turn) for turn in _TURNS[shape.rotation]]
            shape = _upright(shape)
        fitted_width, fitted_height = _fitted(shape, canvas)
        nodes.append(graph.add("scale", f"{fitted_width}:{fitted_height}{colors}"))
        nodes.append(graph.add("format", _YUV))
        left, top = (width - fitted_width) // 4 * 2, (height - fitted_height) // 4 * 2
        nodes.append(graph.add("pad", f"{width}:{height}:{left}:{top}"))
    else:
        nodes.append(graph.add("scale", f"{first.width}:{first.height}{colors}"))
        right, bottom = width - first.width, height - first.height
        if right or bottom:
            # In 4:4:4, because borders in 4:2:0 are drawn two pixels wide.
            nodes.append(graph.add("format", "yuv444p"))
            nodes.append(graph.add("pad", f"{width}:{height}"))
            nodes.append(graph.add("fillborders", f"right={right}:bottom={bottom}:mode=smear"))
            nodes.append(graph.add("scale"))
        nodes.append(graph.add("format", _YUV))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph


def _fitted(shape: FrameShape, canvas: Canvas) -> tuple[int, int]:
    """The size of a frame on the canvas: even, so that borders lie between colour samples."""
    width, height = _extent(shape, canvas.squares)
    factor = min(canvas.width / width, canvas.height / height)
    fitted_width, fitted_height = (max(2 * round(side * factor / 2), 2) for side in (width, height))
    return min(fitted_width, canvas.width), min(fitted_height, canvas.height)
