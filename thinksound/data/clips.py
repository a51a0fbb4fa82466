"""Training clips, and the sources that they are read from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..families.protocol import Family
from ..request import Texts
from .shards import Layout


@dataclass(frozen=True)
class Clip:
    """One training clip: its frames, sound and texts."""

    name: str
    frames: Mapping[str, Tensor]  # uint8 (N, H, W, 3) by the names of the family's views; none without video
    waveform: Tensor  # float32 (2, A); mono has it twice
    texts: Texts


@dataclass(frozen=True)
class Skipped:
    """A source, or a part of one, that gives no clip, and why."""

    name: str
    reason: str


class Source(Protocol):
    """Something that clips are read from."""

    @property
    def name(self) -> str: ...

    def identity(self) -> str:
        """A string of everything the clips depend on; while it is the same, encoded clips stay valid."""

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        """Yield the clips, each of the layout's length, and the parts that were skipped.

        Raises:
            ThinkSoundError: the source gives none.
        """


def texts_read(family: Family, texts: Texts) -> Texts:
    """Of a clip's texts, those that the family reads.

    Tables and synthetic clips have a chain of thought for every family; one that reads none gets the caption.
    """
    return Texts(**{name: text for name, text in vars(texts).items() if name in family.texts})


def hash_of(texts: Iterable[str]) -> str:
    """The SHA-256 hash of a list of strings, as 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
