"""Ways to damage a file. Each takes the bytes and a generator, and returns other bytes."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

_EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def _span(data: bytes, rng: random.Random, longest: int) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.randint(1, longest))


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_early_bits(data: bytes, rng: random.Random) -> bytes:
    early = max(1, min(len(data), 2048))
    return flip_bits(data[:early], rng) + data[early:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng, 512)
    filling = rng.choice((bytes(end - start), b"\xff" * (end - start), rng.randbytes(end - start)))
    return data[:start] + filling + data[end:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def behead(data: bytes, rng: random.Random) -> bytes:
    return data[rng.randrange(len(data)) :]


def remove(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng, 4096)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng, 4096)
    return data[:end] + data[start:end] * rng.choice((1, 2, 20)) + data[end:]


def swap(data: bytes, rng: random.Random) -> bytes:
    first, second, third = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.randint(1, 64)) + data[place:]


def set_number(data: bytes, rng: random.Random) -> bytes:
    """Another 16, 32 or 64-bit number, in either byte order."""
    size, form = rng.choice(((2, "H"), (4, "I"), (8, "Q")))
    if len(data) < size:
        return data
    place = rng.randrange(len(data) - size + 1)
    value = rng.choice((*_EXTREMES, rng.getrandbits(8 * size))) & ((1 << 8 * size) - 1)
    if size == 8 and rng.random() < 0.5:
        value = rng.choice((1 << 62, (1 << 63) - 1, (1 << 64) - 1))
    return data[:place] + struct.pack(rng.choice("<>") + form, value) + data[place + size :]


def randomise_header(data: bytes, rng: random.Random) -> bytes:
    length = min(len(data), rng.choice((4, 16, 64)))
    return rng.randbytes(length) + data[length:]


BYTES: tuple[Mutation, ...] = (
    flip_bits,
    flip_early_bits,
    overwrite,
    truncate,
    behead,
    remove,
    repeat,
    swap,
    insert,
    set_number,
    randomise_header,
)


# --- MP4: boxes of (size, type, content) ---------------------------------------------------------

_HOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"moof", b"traf", b"mvex"}


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        stop = start + size if size >= 8 else end
        if stop > end:
            return
        yield start, stop, kind
        if kind in _HOLDERS:
            yield from _boxes(data, start + 8, stop)
        start = stop


def mutate_box(data: bytes, rng: random.Random) -> bytes:
    """Damage one box of an MP4 file: its size, its type, its numbers, or the box as a whole."""
    boxes = [box for box in _boxes(data, 0, len(data)) if box[2] != b"mdat"]
    if not boxes:
        return set_number(data, rng)
    start, stop, kind = rng.choice(boxes)
    way = rng.randrange(6)
    if way == 0:
        size = rng.choice((*_EXTREMES, stop - start + rng.randint(-16, 16))) & 0xFFFFFFFF
        return data[:start] + struct.pack(">I", size) + data[start + 4 :]
    if way == 1:
        other = rng.choice((b"free", b"trak", b"elst", b"stts", rng.randbytes(4), rng.choice(boxes)[2]))
        return data[: start + 4] + other + data[start + 8 :]
    if way == 2 and kind not in _HOLDERS:  # hidden behind another name: offsets in the file stay right
        return data[: start + 4] + b"free" + data[start + 8 :]
    content = data[start + 8 : stop]
    if not content:
        return data
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(0, len(content), 4) if rng.random() < 0.8 else rng.randrange(len(content))
        value = struct.pack(">I", rng.choice((*_EXTREMES, rng.getrandbits(10), rng.getrandbits(32))))
        content = (content[:place] + value + content[place + 4 :])[: stop - start - 8]
    return data[: start + 8] + content + data[stop:]


# --- Matroska: elements of (identifier, size, content) -------------------------------------------

_EBML_HOLDERS = {
    0x18538067,
    0x1654AE6B,
    0xAE,
    0xE0,
    0xE1,
    0x1549A966,
    0x1F43B675,
    0xA0,
    0x1254C367,
    0x7373,
    0x67C8,
}


def _number(data: bytes, place: int, keep_marker: bool) -> tuple[int, int]:
    first = data[place]
    if not first:
        raise ValueError("no length marker")
    length = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length


def _elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Start, start of the content, end and identifier of each element."""
    while start < end:
        try:
            identifier, length = _number(data, start, True)
            size, more = _number(data, start + length, False)
        except (IndexError, ValueError):
            return
        content = start + length + more
        stop = min(end, content + size)
        yield start, content, stop, identifier
        if identifier in _EBML_HOLDERS:
            yield from _elements(data, content, stop)
        start = stop


def mutate_element(data: bytes, rng: random.Random) -> bytes:
    """Damage one element of a Matroska file: its size, its identifier or its value."""
    elements = list(_elements(data, 0, len(data)))
    if not elements:
        return set_number(data, rng)
    start, content, stop, _ = rng.choice(elements)
    way = rng.randrange(5)
    if way == 0:
        place = rng.randrange(start, content)
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if way == 1:
        return data[:start] + data[stop:]
    if way == 2:
        return data[:stop] + data[start:stop] * rng.choice((1, 3)) + data[stop:]
    length = stop - content
    extremes = (
        bytes(length),
        b"\xff" * length,
        b"\x7f" + b"\xff" * max(0, length - 1),
        rng.randbytes(length),
    )
    value = rng.choice(extremes)
    if length in (4, 8) and rng.random() < 0.4:
        number = rng.choice((math.nan, math.inf, -1.0, 1e300 if length == 8 else 1e30))
        value = struct.pack(">f" if length == 4 else ">d", number)
    return data[:content] + value[:length] + data[stop:]


# --- JSON ----------------------------------------------------------------------------------------


def odd_value(rng: random.Random) -> Any:
    """A value that is probably not the expected one."""
    deep: Any = 1
    for _ in range(rng.choice((3, 5000))):
        deep = [deep]
    values = (
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**30,
        0.5,
        1e300,
        math.nan,
        math.inf,
        "",
        "x",
        "../x",
    )
    texts = ("/etc/passwd", "\u0000", "\ud800", "a" * 20_000)
    nested: tuple[Any, ...] = ([], {}, [[]], {"": None}, [1, "a"], deep)
    return rng.choice((*values, *texts, *nested))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 20)):
            yield from _paths(value[index], (*path, index))


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or rename one value of a JSON text; or take another text altogether."""
    try:
        value = json.loads(data)
    except ValueError:
        return flip_bits(data, rng)
    if rng.random() < 0.1:
        return rng.choice(
            (b"", b"null", b"[]", b"{}", b"3", b'"x"', b"{", b"[" * 100_000, b"\xff\xfe{}", data[:-2])
        )
    paths = list(_paths(value))
    path = rng.choice(paths[:200])
    if not path:
        return _dump(odd_value(rng))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    way = rng.randrange(8)
    if way == 0:
        del holder[path[-1]]
    elif way == 1 and isinstance(holder, dict):
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
    else:
        holder[path[-1]] = odd_value(rng)
    return _dump(value)


def _dump(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b'{"a":' * 50_000
