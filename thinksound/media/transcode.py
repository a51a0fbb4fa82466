"""Pictures encoded again as H.264, for inputs whose packets MP4 cannot hold.

Every presented picture is kept at its time. Interlaced pictures are deinterlaced, odd sizes gain a
copy of their last row or column, and a size that changes is scaled to that of the first picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, pairwise

import av
import numpy as np
from av.container import OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from .probe import VideoInfo
from .timeline import TimedFrame

# Visually lossless at usual distances. Without B-frames, decoding and presentation times agree.
_X264 = {"crf": "18", "preset": "fast", "bf": "0"}
_YUV = "yuv420p"  # the one pixel format that every player shows


def encode_h264(
    target: OutputContainer,
    frames: Iterator[TimedFrame],
    info: VideoInfo,
    end: Fraction,
    time_base: Fraction,
) -> Iterator[Packet[VideoStream]]:
    """Add a picture stream to ``target`` and return its packets.

    Args:
        target: the file to be written; its header must not be written yet.
        frames: the pictures, at least one; the first one's time becomes 0.
        info: of the video that they come from.
        end: when the last picture disappears, on the clock of the pictures.
        time_base: unit of the times written, in seconds.
    """
    first = next(frames)
    # 4:2:0 needs even sides.
    width, height = (side + side % 2 for side in (first.frame.width, first.frame.height))
    prepared = _prepared(chain([first], frames), _filters(first.frame, width, height))
    _, picture = shown = next(prepared)

    encoder = target.add_stream("libx264", rate=info.average_rate or 25, options=_X264)
    encoder.time_base = time_base
    context = encoder.codec_context
    context.time_base = time_base
    context.width, context.height, context.pix_fmt = width, height, _YUV
    context.sample_aspect_ratio = info.sample_aspect_ratio
    context.color_range, context.colorspace = picture.color_range, picture.colorspace
    context.color_primaries, context.color_trc = first.frame.color_primaries, first.frame.color_trc
    matrix = first.frame.side_data.get("DISPLAYMATRIX")
    if isinstance(matrix, SideData):
        encoder.set_display_matrix(np.frombuffer(bytes(matrix), np.int32).tolist())
    return _encoded(encoder, chain([shown], prepared), first.time, end)


def _encoded(
    encoder: VideoStream, shown: Iterator[tuple[Fraction, VideoFrame]], start: Fraction, end: Fraction
) -> Iterator[Packet[VideoStream]]:
    time_base = encoder.codec_context.time_base
    stays: deque[int] = deque()  # of the pictures that are in the encoder
    last: VideoFrame | None = None
    for (time, frame), (after, _) in pairwise(chain(shown, [(end, last)])):
        assert frame is not None  # only the end has none
        frame.pts, frame.time_base = round((time - start) / time_base), time_base
        frame.pict_type = PictureType.NONE  # the encoder chooses
        stays.append(round((after - start) / time_base) - frame.pts)
        yield from _with_durations(encoder.encode(frame), stays)
    yield from _with_durations(encoder.encode(None), stays)


def _with_durations(packets: list[Packet[VideoStream]], stays: deque[int]) -> Iterator[Packet[VideoStream]]:
    for packet in packets:
        packet.duration = stays.popleft()
        yield packet


def _prepared(frames: Iterator[TimedFrame], graph: Graph) -> Iterator[tuple[Fraction, VideoFrame]]:
    """The filtered pictures with their times: filters keep the number and the order."""
    times: deque[Fraction] = deque()  # of the pictures that are in the filters
    for index, timed in enumerate(frames):
        timed.frame.pts, timed.frame.time_base = index, Fraction(1, 25)  # deinterlacing wants increasing ones
        times.append(timed.time)
        graph.vpush(timed.frame)
        yield from _pulled(graph, times)
    graph.vpush(None)
    yield from _pulled(graph, times)


def _pulled(graph: Graph, times: deque[Fraction]) -> Iterator[tuple[Fraction, VideoFrame]]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield times.popleft(), frame


def _filters(first: VideoFrame, width: int, height: int) -> Graph:
    """Filters to progressive 4:2:0 of the size given, the first picture's or one more."""
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
    # RGB has no matrix to keep; players take BT.709 for granted.
    colors = ":out_color_matrix=bt709:out_range=tv" if first.format.is_rgb else ""
    nodes.append(graph.add("scale", f"{first.width}:{first.height}{colors}"))
    right, bottom = width - first.width, height - first.height
    if right or bottom:
        # Without subsampling: the borders of 4:2:0 are drawn two pixels wide.
        nodes.append(graph.add("format", "yuv444p"))
        nodes.append(graph.add("pad", f"{width}:{height}"))
        nodes.append(graph.add("fillborders", f"right={right}:bottom={bottom}:mode=smear"))
        nodes.append(graph.add("scale"))
    nodes.append(graph.add("format", _YUV))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph
