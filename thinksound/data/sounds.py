"""A folder of sounds that the VAE is trained on."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, MediaError
from ..media.soundtrack import read_sound
from ..rates import MAX_DURATION_S
from .clips import hash_of

logger = logging.getLogger(__name__)

CACHE_BYTES = 2**31  # of decoded sound that is kept in memory
_NO_MEDIA = {".csv", ".json", ".jsonl", ".md", ".txt"}
_TRIES = 20  # files in a row that may be unreadable
_HELD_OUT = 32  # files at most
_THREADS = 8


class FolderSounds:
    """Excerpts of the audio and video files in a folder and its subfolders.

    One file in twenty is held out, at least 1 and at most 32. Only the first 3 minutes of a file are used.
    """

    def __init__(
        self,
        folder: Path,
        sample_rate: int,
        cache_bytes: int = CACHE_BYTES,
        without: Path | None = None,
    ) -> None:
        """
        Args:
            folder: with the files.
            sample_rate: in Hz, to which they are resampled.
            cache_bytes: of decoded sound that is kept in memory.
            without: a folder whose files are left out, such as that of the run.

        Raises:
            InputError: the folder is missing or holds fewer than two files.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give one with audio or video files")
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file()
            and path.suffix.lower() not in _NO_MEDIA
            and not path.name.startswith(".")
            and (without is None or not path.resolve().is_relative_to(without.resolve()))
        )
        if len(files) < 2:
            raise InputError(f"{folder}: {len(files)} files; give a folder with at least two sounds")
        count = max(1, min(_HELD_OUT, len(files) // 20))
        held_out = files[:: len(files) // count][:count]
        self._folder, self.sample_rate = folder, sample_rate
        self._held_out = held_out
        self._files = [path for path in files if path not in set(held_out)]
        self._cache: OrderedDict[Path, Tensor | None] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, cache_bytes
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """Number of files and hash of their names, the same wherever the folder is."""
        names = [path.relative_to(self._folder).as_posix() for path in (*self._files, *self._held_out)]
        return f"{len(names)} files ({hash_of(names)[:12]})"

    def batch(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        """Excerpts ``(count, 2, samples)`` float32 of files drawn with ``generator`` and read in parallel.

        Raises:
            InputError: too many files in a row cannot be read.
        """
        seeds = torch.randint(2**62, (count,), generator=generator).tolist()
        with ThreadPoolExecutor(_THREADS) as pool:
            return torch.stack(list(pool.map(lambda seed: self._drawn(seed, samples), seeds)))

    def held_out(self, samples: int) -> Tensor:
        """The middle of each held-out file, ``(N, 2, samples)`` float32.

        Raises:
            InputError: none of them can be read.
        """
        sounds = [sound for path in self._held_out if (sound := self._read(path)) is not None]
        if not sounds:
            raise InputError(
                f"{self._folder}: none of the files that are held out can be read, such as "
                f"{self._held_out[0]}; take unreadable files away"
            )
        middles = []
        for sound in sounds:
            start = max(0, (sound.shape[1] - samples) // 2)
            middles.append(_padded(sound[:, start : start + samples].float() / 32767, samples))
        return torch.stack(middles)

    def _drawn(self, seed: int, samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(_TRIES):
            path = self._files[_integer(len(self._files), generator)]
            sound = self._read(path)
            if sound is not None:
                return draw_excerpt(sound, samples, generator)
        raise InputError(
            f"{self._folder}: {_TRIES} files in a row cannot be read, the last {path}; "
            "take unreadable files away"
        )

    def _read(self, path: Path) -> Tensor | None:
        """The sound ``(2, A)`` int16; None if it cannot be read, which is logged once."""
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        sound, reason = None, ""
        try:
            waveform = read_sound(path, self.sample_rate, MAX_DURATION_S).waveform
            sound = (waveform.nan_to_num().clamp(-1, 1) * 32767).round().to(torch.int16)
        except MediaError as error:
            reason = str(error)
        with self._lock:
            if path not in self._cache:  # another thread may have been faster
                if reason:
                    logger.warning("not used: %s", reason)
                self._cache[path] = sound
                self._cached_bytes += _size(sound)
                while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                    self._cached_bytes -= _size(self._cache.popitem(last=False)[1])
        return sound


def draw_excerpt(sound: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Draw an excerpt ``(2, samples)`` float32 of ``sound (2, A)`` int16.

    It is the louder of two random places, made quieter by 0 to 12 dB; its channels are swapped and its sign
    is changed with a chance of one half each.
    """
    longest = max(0, sound.shape[1] - samples)
    starts = (_integer(longest + 1, generator), _integer(longest + 1, generator))
    places = [sound[:, start : start + samples].float() / 32767 for start in starts]
    excerpt = max(places, key=lambda place: place.square().mean().item())
    level, swap, sign = torch.rand(3, generator=generator).tolist()
    excerpt = excerpt.flip(0) if swap < 0.5 else excerpt
    return _padded(excerpt * 10 ** (-0.6 * level) * (1 if sign < 0.5 else -1), samples)


def _padded(excerpt: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(excerpt, (0, samples - excerpt.shape[1]))


def _integer(limit: int, generator: torch.Generator) -> int:
    """A random integer from 0 to ``limit`` - 1."""
    return int(torch.randint(limit, (), generator=generator))


def _size(sound: Tensor | None) -> int:
    return sound.numel() * sound.element_size() if sound is not None else 0
