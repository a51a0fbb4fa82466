"""Finds when the edit list of an MP4 ends its video track, which FFmpeg reads but does not pass on.

FFmpeg takes a frame's duration from the order of decoding. With B-frames at irregular times, or where an
edit list ends in the middle of a frame, the duration of the last frame is wrong, by up to the length of the
longest frame. Source: ISO/IEC 14496-12, sections 4.2 (boxes), 8.2.2 (mvhd), 8.3.2 (tkhd), 8.6.6 (elst).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

_Span = tuple[int, int]  # positions in the file where the content of a box starts and ends


def edit_list_end(path: Path, track_id: int) -> Fraction | None:
    """Return the presentation time at which the track ``track_id`` ends, in seconds.

    None if there is no edit list, or if it does more than set the start and end of the track.
    """
    with path.open("rb") as file:
        try:
            (movie,) = _boxes(file, (0, path.stat().st_size), b"moov")
            (header,) = _boxes(file, movie, b"mvhd")
            timescale = _number(file, header[0] + (20 if _version(file, header) == 1 else 12), 4)
            for track in _boxes(file, movie, b"trak"):
                (header,) = _boxes(file, track, b"tkhd")
                if _number(file, header[0] + (20 if _version(file, header) == 1 else 12), 4) != track_id:
                    continue
                (edits,) = _boxes(file, track, b"edts")
                (edit_list,) = _boxes(file, edits, b"elst")
                return Fraction(_end(file, edit_list), timescale)
        except (struct.error, ValueError, ZeroDivisionError):
            pass  # a box is missing, occurs twice, or is cut off
    return None


def _end(file: BinaryIO, edit_list: _Span) -> int:
    """Sum the durations of the edits: any number of pauses, then one stretch of frames.

    Raises:
        ValueError: the edit list has another form.
    """
    width = 8 if _version(file, edit_list) == 1 else 4
    pause = 2 ** (8 * width) - 1  # a start of -1 marks a pause
    count = _number(file, edit_list[0] + 4, 4)
    total = 0
    for index in range(count):
        position = edit_list[0] + 8 + index * (2 * width + 4)
        duration, start = _number(file, position, width), _number(file, position + width, width)
        if duration == 0 or (start == pause) == (index == count - 1):  # fragmented files give 0
            raise ValueError("an edit list that rearranges")
        total += duration
    return total


def _boxes(file: BinaryIO, within: _Span, kind: bytes) -> Iterator[_Span]:
    position, end = within
    while position + 8 <= end:
        file.seek(position)
        size, found = struct.unpack(">I4s", file.read(8))
        start = position + 8
        if size == 1:
            size, start = _number(file, start, 8), start + 8
        stop = position + size if size else end
        if stop < start or stop > end:
            raise ValueError("a box that does not fit")
        if found == kind:
            yield start, stop
        position = stop


def _version(file: BinaryIO, box: _Span) -> int:
    return _number(file, box[0], 1)


def _number(file: BinaryIO, position: int, size: int) -> int:
    file.seek(position)
    content = file.read(size)
    if len(content) < size:
        raise ValueError("the file ends in a box")
    return int.from_bytes(content, "big")
