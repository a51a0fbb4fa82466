"""Stores titles and other tags where ordinary players look for them in an MP4.

FFmpeg's muxer writes tags either under any name, or as the atoms introduced by iTunes, which players and
file managers read. This module gives the finished file both, in place: the atoms in ``moov/udta/meta``, and
all names in ``moov/meta``, where the QuickTime File Format has them. The muxer stores one extra tag, whose
room is used, so that nothing else in the file moves.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import av

from .editlist import _boxes

ROOM = "thinksound.room"  # name of the extra tag that makes room; the finished file does not have it

_ATOMS = {
    "title": b"\xa9nam",
    "artist": b"\xa9ART",
    "album_artist": b"aART",
    "album": b"\xa9alb",
    "composer": b"\xa9wrt",
    "genre": b"\xa9gen",
    "date": b"\xa9day",
    "comment": b"\xa9cmt",
    "description": b"desc",
    "synopsis": b"ldes",
    "copyright": b"cprt",
}
_UNDETERMINED = 0x55C4  # the language code "und"


def room(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the extra tag that makes room for :func:`write_player_tags`; empty if none is needed."""
    atoms = _player_atoms(tags)
    return {ROOM: "x" * (len(atoms) + 64)} if atoms else {}


def write_player_tags(path: Path, tags: Mapping[str, str]) -> None:
    """Rewrite ``tags`` in a finished MP4 that holds the tag of :func:`room`."""
    major, minor, micro = av.library_versions["libavformat"]
    tags = {
        **{key: text for key, text in tags.items() if key != ROOM},
        "encoder": f"Lavf{major}.{minor}.{micro}",
    }
    with path.open("r+b") as file:
        (movie,) = _boxes(file, (0, path.stat().st_size), b"moov")
        ((start, stop),) = _boxes(file, movie, b"udta")
        others = []
        for kind in (b"loci", b"chpl"):
            for span in _boxes(file, (start, stop), kind):
                file.seek(span[0])
                others.append(_box(kind, file.read(span[1] - span[0])))
        content = _box(b"udta", _player_atoms(tags), *others) + _named(tags)
        spare = stop - (start - 8) - len(content)
        assert spare >= 8, spare
        file.seek(start - 8)
        file.write(content + _box(b"free", bytes(spare - 8)))


def _player_atoms(tags: Mapping[str, str]) -> bytes:
    items = [_box(atom, _data(tags[key])) for key, atom in _ATOMS.items() if tags.get(key)]
    meta = _meta(b"mdirappl", _box(b"ilst", *items)) if items else b""
    place = tags.get("location", "").encode(errors="replace")
    if place and len(place) < 256:
        meta += _box(b"\xa9xyz", struct.pack(">HH", len(place), _UNDETERMINED), place)
    return meta


def _named(tags: Mapping[str, str]) -> bytes:
    keys = [_box(b"mdta", key.encode(errors="replace")) for key in tags]
    items = [_box(struct.pack(">I", index), _data(text)) for index, text in enumerate(tags.values(), 1)]
    return _meta(b"mdta", _box(b"keys", struct.pack(">II", 0, len(keys)), *keys), _box(b"ilst", *items))


def _meta(kind: bytes, *content: bytes) -> bytes:
    return _box(b"meta", bytes(4), _box(b"hdlr", bytes(8), kind.ljust(17, b"\0")), *content)


def _data(text: str) -> bytes:
    return _box(b"data", struct.pack(">II", 1, 0), text.encode(errors="replace"))  # 1: UTF-8


def _box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I4s", 8 + len(joined), kind) + joined
