"""Conversion of published checkpoints to safetensors in one dtype: smaller and faster to load.

A converted file holds the network alone. One tensor is in memory at a time: it is mapped from the
checkpoint, cast and appended to the new file. For a folder, the configuration and tokenizer are copied
beside the weights. Files and folders are replaced atomically.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from ..progress import Progress
from . import checksums
from .checksums import file_sha256
from .load import NAMES, OWN, Fold, NamedTensors
from .locate import check_weights_dir, describe_missing, files_of, is_complete, published_path, weight_paths
from .registry import weight_file
from .tensors import check_finite

_SAFETENSORS_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Converted:
    """One row of the report of `convert`."""

    key: str
    path: Path
    dtype: str
    tensors: int
    source_size: int  # bytes
    size: int  # bytes

    def __str__(self) -> str:
        return (
            f"{self.key:<17} {self.source_size / 1e9:7.2f} GB -> {self.size / 1e9:6.2f} GB  "
            f"{self.tensors:>4} tensors in {self.dtype:<8}  {self.path}"
        )


@dataclass(frozen=True)
class Contents:
    """What a network needs from its published file."""

    names: Collection[str] = ()  # of the network's tensors; empty if the network is not known
    fold: Fold | None = None  # see `load.load_network`


def convert(
    weights_dir: Path,
    keys: Iterable[str],
    dtypes: Mapping[str, torch.dtype],
    contents: Callable[[str, Path], Contents] = lambda key, path: Contents(),
    progress: Progress | None = None,
) -> list[Converted]:
    """Write ``converted/…`` for each of ``keys``.

    Args:
        weights_dir: the folder of weight files.
        keys: of published files in `registry`.
        dtypes: by key; float32 for keys that it lacks.
        contents: called with a key and the path of its file.
        progress: called as ``progress(key, bytes done, bytes in all)`` after each tensor.

    Raises:
        WeightsError: a key belongs to bundled weights, a file is missing, damaged or of another network, a
            dtype is not supported, or the disk is full.
    """
    files = {key: weight_file(key) for key in keys}
    for key, file in files.items():
        if file.is_random:
            raise WeightsError(f"{key}: drawn when it is loaded, there is no file; give a published key")
        if file.bundled:
            raise WeightsError(f"{key}: comes converted with this project; give a published key")
    check_weights_dir(weights_dir)
    rows = []
    for key, file in files.items():
        published = published_path(weights_dir, file)
        if not is_complete(file, published):
            raise WeightsError(describe_missing(weights_dir, [file]))
        dtype = dtypes.get(key, torch.float32)
        if dtype not in _SAFETENSORS_NAMES:
            raise WeightsError(f"{key}: {dtype} is no choice; give float32, bfloat16 or float16")
        sources = weight_paths(published, file.layouts)
        for source in files_of(file, published):
            checksums.check(weights_dir, source)
        needed = contents(key, published)
        held = NamedTensors(published, file, expected=needed.names)
        if not held:
            raise WeightsError(
                f"{published}: holds nothing of {file.purpose} (it has {held.held[0]} …); download it again"
            )
        tensors = held.folded(needed.fold)
        metadata = {
            "format": "pt",
            NAMES: OWN,
            "dtype": str(dtype).removeprefix("torch."),
            "source": ",".join(source.name for source in sources),
            "source_sha256": ",".join(_sha256(weights_dir, source) for source in sources),
        }
        target = weights_dir / file.converted_path
        with _replacing(target, file.is_folder) as new:
            if file.is_folder:
                for part in set(files_of(file, published)) - set(sources):
                    if not part.name.endswith(".index.json"):
                        shutil.copyfile(part, new / part.name)
            written = new / file.written if file.is_folder else new
            write_safetensors(written, tensors, dtype, metadata, key, progress)
            size = written.stat().st_size
        for part in files_of(file, target):  # replaces the record of an earlier copy
            checksums.record_sha256(weights_dir, part, file_sha256(part), finite=True)
        source_size = sum(source.stat().st_size for source in sources)
        rows.append(Converted(key, target, metadata["dtype"], len(tensors), source_size, size))
    return rows


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    label: str,
    progress: Progress | None = None,
) -> None:
    """Write ``tensors``, cast to ``dtype``, as a safetensors file, with one tensor in memory at a time.

    Raises:
        WeightsError: the disk is full, or a tensor is not of a floating-point dtype or not finite.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in tensors:
        shape = tensors[name].shape
        end = offset + shape.numel() * dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    free = shutil.disk_usage(path.parent).free
    if offset > free:
        raise WeightsError(
            f"{path.parent}: {offset / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; make room"
        )
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        done = 0
        for name in tensors:
            tensor = tensors[name]
            if not tensor.is_floating_point():
                raise WeightsError(f"{label}: {name} holds {tensor.dtype} instead of numbers with a fraction")
            cast = tensor.to(dtype)
            check_finite(label, name, tensor, cast)
            raw = cast.contiguous().reshape(-1).view(torch.uint8)
            stream.write(raw.numpy().data)
            done += raw.numel()
            if progress is not None:
                progress(label, done, offset)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _replacing(target: Path, is_folder: bool) -> Iterator[Path]:
    """Yields a temporary path beside ``target``; what is written there replaces it if the block succeeds."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert.") as name:
            new = Path(name) / target.name
            if is_folder:
                new.mkdir()
            yield new
            if target.is_dir():
                target.rename(Path(name) / "old")
            new.replace(target)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise WeightsError(
            f"{target}: cannot be written ({reason}); make room or check its folder"
        ) from error


def _sha256(weights_dir: Path, path: Path) -> str:
    known = checksums.recorded_sha256(weights_dir, path)
    if known is None:
        known = file_sha256(path)
        checksums.record_sha256(weights_dir, path, known)
    return known
