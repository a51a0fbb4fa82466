"""Reads the named tensors of a weight file, memory-mapped, without running any code from the file.

Three formats are read and recognised by their content: safetensors; the zip archive that ``torch.save``
writes; and the plain pickle stream that it wrote before torch 1.6, which old Hugging Face repositories still
have. The two pickled formats are read by `pickles`, which imports and runs nothing. So trainer checkpoints
with configuration objects, callbacks and optimiser state are readable whatever their classes are, and a
hostile file cannot call anything. torch's own reader is not used: with ``weights_only`` it refuses such
checkpoints, and without it, it runs their code.

A tensor is a record (storage, offset, shape, strides) until it is looked up. Tensors that are not looked up,
such as optimiser state, are never read from the disk.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError
from .pickles import LARGEST_PICKLE, PICKLE_ERRORS, Storage, View, read_pickle

_LONGEST_NAME = 500
_MOST_REPEATED = 8  # largest ratio of the tensors' size to the file's; above 1 if tensors share values

_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def open_tensors(path: Path) -> Mapping[str, Tensor]:
    """Returns the tensors in ``path`` by name; each is mapped from the file when it is looked up.

    For a trainer checkpoint they are the tensors of its ``state_dict``. Raises `WeightsError` if the file is
    missing, damaged, or not a weight file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}); see `thinksound weights download`"
        ) from error
    if head.startswith(b"PK\x03\x04"):
        tensors = _open_zip(path)
    elif head[8:9] == b"{":  # before pickle: the header's length may begin with the same byte
        tensors = _open_safetensors(path)
    elif head.startswith(b"\x80"):
        tensors = _open_legacy(path)
    else:
        raise WeightsError(f"{path}: {_describe(head)}, not a weight file; download it again")
    for name in tensors:  # names appear in messages
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise WeightsError(f"{path}: damaged, it names a tensor {name[:20]!a}…; download it again")
    return tensors


def check_finite(source: str, name: str, tensor: Tensor, cast: Tensor) -> None:
    """Raises `WeightsError` if a value of ``tensor``, or of its ``cast``, is not finite."""
    if _is_finite(cast):
        return
    if cast.dtype != tensor.dtype and _is_finite(tensor.double()):
        kind = str(cast.dtype).removeprefix("torch.")
        raise WeightsError(f"{source}: {name} holds numbers too large for {kind}; choose another --dtype")
    raise WeightsError(
        f"{source}: {name} holds NaN or infinite numbers, as from training that diverged; give other "
        "weights, or download the file again"
    )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()  # one pass without a copy; NaN is propagated
    return bool(low.isfinite() and high.isfinite())


def _describe(head: bytes) -> str:
    """Describes a file that has none of the formats, for messages."""
    text = head.lstrip().lower()
    if not head:
        return "an empty file"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (cloned without its contents)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "a text file"
    return "of an unknown format"


class _SafetensorsFile(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = safe_open(path, framework="pt", device="cpu")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, KeyError, AttributeError, RuntimeError) as error:  # a dtype that torch lacks
            raise WeightsError(f"{self._path}: {name} cannot be read ({error}); convert it again") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _open_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return _SafetensorsFile(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); download or convert it again") from error


# --- pickled checkpoints -------------------------------------------------------------------------


# Keys under which trainers put the weights in a checkpoint.
_STATE_DICT = "state_dict"  # Lightning's, which also holds moving averages: these differ by name
_WRAPPERS = (
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "generator",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "params_ema",
)
_DEEPEST = 4  # nested wrappers


def _named_views(path: Path, content: object) -> dict[str, View]:
    """Returns the tensors of an unpickled checkpoint, without the dictionaries that a trainer adds."""
    for _ in range(_DEEPEST):
        if not isinstance(content, dict):
            break
        wrapped = content.get(_STATE_DICT)
        if not isinstance(wrapped, dict):
            views = {name: view for name, view in content.items() if isinstance(view, View)}
            inner = [name for name in _WRAPPERS if isinstance(content.get(name), dict) and content[name]]
            if views or not inner:
                if views:
                    return views
                break
            if len(inner) > 1:
                raise WeightsError(
                    f"{path}: holds several sets of weights ({', '.join(inner)}); save the one that is meant "
                    "in a file of its own"
                )
            wrapped = content[inner[0]]
        content = wrapped
    if isinstance(content, dict) and any("optim" in name or name == "param_groups" for name in content):
        raise WeightsError(
            f"{path}: the state of an optimiser, without the weights of a network; give the checkpoint that "
            "holds those"
        )
    raise WeightsError(f"{path}: holds no named tensors; give a published checkpoint")


class _PickledFile(Mapping[str, Tensor]):
    """Tensors of an unpickled checkpoint; ``places`` has the offset and size in bytes of each storage."""

    def __init__(self, path: Path, content: object, places: Mapping[str, tuple[int, int]]) -> None:
        self._views = _named_views(path, content)
        size = sum(math.prod(view.shape) * view.dtype.itemsize for view in self._views.values())
        if size > _MOST_REPEATED * path.stat().st_size + (1 << 26):
            raise WeightsError(f"{path}: damaged, its tensors share their numbers; download it again")
        self._path = path
        self._places = places
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        self._storages: dict[Storage, torch.UntypedStorage] = {}

    def __getitem__(self, name: str) -> Tensor:
        view = self._views[name]
        try:
            storage = self._storage(view.storage)
            return torch.empty(0, dtype=view.dtype).set_(storage, view.offset, view.shape, view.stride)
        except RuntimeError as error:
            raise WeightsError(f"{self._path}: {name} cannot be read ({error}); download it again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def _storage(self, wanted: Storage) -> torch.UntypedStorage:
        """Returns a storage over the file's bytes, always the same one, so that tied tensors stay tied."""
        if wanted in self._storages:
            return self._storages[wanted]
        offset, size = self._places.get(wanted.key, (0, -1))
        nbytes = wanted.nbytes
        if size < nbytes or offset + nbytes > self._bytes.numel():
            raise WeightsError(f"{self._path}: cut short, tensor data is missing; download it again")
        storage = self._bytes.untyped_storage()[offset : offset + nbytes]
        if offset % wanted.dtype.itemsize:
            # Legacy files are not aligned. The copy is not kept, because most are needed once, for a cast.
            return torch.empty(0, dtype=torch.uint8).set_(storage).clone().untyped_storage()
        self._storages[wanted] = storage
        return storage


class _Archive(io.FileIO):
    """Limits the size of a read, because `zipfile` reads the list of entries at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LARGEST_PICKLE:
            raise zipfile.BadZipFile(f"an index of {size:,} bytes")
        return super().read(size if size is not None else -1) or b""


def _open_zip(path: Path) -> Mapping[str, Tensor]:
    try:
        with _Archive(path) as file, zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise WeightsError(f"{path}: a zip archive, but not a torch checkpoint; download it again")
            root = roots[0]
            if f"{root}constants.pkl" in entries:
                raise WeightsError(
                    f"{path}: a TorchScript program, not a checkpoint; give the published file"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise WeightsError(
                    f"{path}: a compressed archive, which torch never writes; download it again"
                )
            if any(entry.compress_size != entry.file_size for entry in entries.values()):
                raise zipfile.BadZipFile("an entry of two sizes")
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise WeightsError(
                    f"{path}: written on a big-endian machine; save it again on a little-endian one"
                )
            content, _ = read_pickle(io.BytesIO(archive.read(f"{root}data.pkl")))
            places = {
                name.removeprefix(f"{root}data/"): (_data_offset(file, entry), entry.file_size)
                for name, entry in entries.items()
                if name.startswith(f"{root}data/")
            }
    except (*PICKLE_ERRORS, zipfile.BadZipFile, RuntimeError, OverflowError, OSError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); download it again") from error
    return _PickledFile(path, content, places)


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Returns the offset of an entry's bytes, after its local header, whose length only that header tells."""
    file.seek(entry.header_offset)
    signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile("an entry without its header")
    return int(entry.header_offset) + 30 + int(name_length) + int(extra_length)


def _open_legacy(path: Path) -> Mapping[str, Tensor]:
    """Reads four pickles (magic number, version, machine, content), the storage keys, then the storages."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with path.open("rb") as file:
            if file.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
                raise WeightsError(
                    f"{path}: a Python pickle, not a torch checkpoint; give the published file"
                )
            read_pickle(file)
            machine, _ = read_pickle(file)
            if not (isinstance(machine, dict) and machine.get("little_endian") is True):
                raise WeightsError(
                    f"{path}: written on a big-endian machine; save it again on a little-endian one"
                )
            content, storages = read_pickle(file)
            keys, _ = read_pickle(file)
            if not isinstance(keys, list) or not all(type(key) is str for key in keys):
                raise pickle.UnpicklingError("no list of storages")
            for key in keys:
                (numel,) = struct.unpack("<q", file.read(8))
                size = numel * storages[key].dtype.itemsize
                if size < 0:
                    raise pickle.UnpicklingError("a storage of impossible size")
                places[key] = (file.tell(), size)
                file.seek(size, io.SEEK_CUR)
    except (*PICKLE_ERRORS, OverflowError, OSError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); download it again") from error
    return _PickledFile(path, content, places)
