"""Named tensors of a weight file, memory-mapped, without running anything that the file says.

Three formats are read, told apart by their content: safetensors; the zip archive that ``torch.save``
writes; and the plain pickle stream it wrote before torch 1.6, which old Hugging Face repositories still
hold. The two pickled formats go through `_Reader`, an unpickler that imports nothing: every name in the
file becomes either one of a few inert records defined here or `_Foreign`, a stand-in that accepts any
construction and any state and does nothing. Trainer checkpoints full of configuration objects, callbacks
and optimiser state are therefore readable whatever their classes are, and a hostile file has nothing to
call. torch's own reader is not used: with ``weights_only`` it refuses such checkpoints, without it it
runs them.

Tensors are records (storage, offset, shape, strides) until one is asked for, so what is not asked for,
optimiser state above all, is never read from the disk.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError

# Storage classes by the name they have in a pickle. Quantised storages are left out: no network here
# has any, and a tensor of one is foreign.
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}

_LARGEST = 1 << 48  # no size, stride or offset reaches this

_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

# What unpickling damaged or hostile bytes can raise, given that no foreign code runs.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


def open_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors in ``path`` by name; each is mapped from the file when it is looked up.

    A trainer checkpoint gives the tensors of its ``state_dict``. Raises `WeightsError` for a file that is
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
        return _open_zip(path)
    if head.startswith(b"\x80"):
        return _open_legacy(path)
    if len(head) > 8 and head[8:9] == b"{":
        return _open_safetensors(path)
    raise WeightsError(f"{path}: {_describe(head)}, not a weight file; download it again")


def _describe(head: bytes) -> str:
    """What a file is that is none of the formats, in words."""
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
        self._file = safe_open(path, framework="pt", device="cpu")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
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


class _Foreign:
    """Stands for every object, class and function that is not a tensor. Does nothing, holds nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> _Foreign:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def _ignore(*_: object, **__: object) -> _Foreign:  # without self: BUILD may address the class
        return _FOREIGN

    # All that the pickle machine asks of an object.
    __call__ = _ignore
    __setstate__ = _ignore
    __setitem__ = _ignore
    append = _ignore
    extend = _ignore
    add = _ignore


_FOREIGN = _Foreign()


class _Dict(dict[Any, Any]):
    """Ordered dictionaries of the file; their extra attributes (module versions) are dropped."""

    __slots__ = ()

    def __setstate__(*_: object) -> None:  # without self, as above
        pass


class _Inert:
    """Base of the records that the file may name: BUILD cannot change them, whatever it says."""

    __slots__ = ()

    def __setstate__(*_: object) -> None:
        pass


@dataclass(frozen=True)
class _StorageType(_Inert):
    dtype: torch.dtype


@dataclass(frozen=True)
class _Dtype(_Inert):
    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage(_Inert):
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _View(_Inert):
    """A tensor as the file describes it."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = (self.offset, *self.shape, *self.stride)
        if any(type(size) is not int or not 0 <= size < _LARGEST for size in sizes):
            raise ValueError("a tensor of impossible shape")
        if len(self.shape) != len(self.stride):
            raise ValueError("a tensor with more sizes than strides, or fewer")
        if math.prod(self.shape):
            last = self.offset + sum(
                (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
            )
            if (last + 1) * self.dtype.itemsize > self.storage.numel * self.storage.dtype.itemsize:
                raise ValueError("a tensor that is larger than its storage")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> object:
    if not isinstance(storage, _Storage):
        return _FOREIGN
    return _View(storage, storage.dtype, offset, tuple(shape), tuple(stride))


def _rebuild_tensor_v2(*arguments: Any) -> object:
    # The seventh marks conjugated or negated views, which no weight file has.
    return _FOREIGN if any(arguments[6:]) else _rebuild_tensor(*arguments)


def _rebuild_tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> object:
    dtype = rest[2]
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        return _FOREIGN
    return _View(storage, dtype.dtype, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> object:
    return tensor


def _rebuild_from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> object:
    return function(*arguments) if isinstance(function, _Rebuild) else _FOREIGN


# Our counterparts of torch's functions, by their names in a pickle.
_REBUILD: dict[str, Callable[..., object]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor_v2,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_from_type": _rebuild_from_type,
    "_rebuild_from_type_v2": _rebuild_from_type,
}


@dataclass(frozen=True)
class _Rebuild(_Inert):
    """Handed out instead of the function itself, whose attributes a pickle could set."""

    name: str

    def __call__(self, *arguments: Any) -> object:
        return _REBUILD[self.name](*arguments)


class _Reader(pickle.Unpickler):
    """Imports nothing: see the module's docstring."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> object:
        if module == "collections" and name == "OrderedDict":
            return _Dict
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and name in _DTYPES:
            return _Dtype(_DTYPES[name])
        if module in ("torch._utils", "torch._tensor", "torch.tensor") and name in _REBUILD:
            return _Rebuild(name)
        return _Foreign

    def persistent_load(self, reference: Any) -> object:
        # ("storage", type, key, device, elements[, view of another storage: torch 0.3 and older])
        if not isinstance(reference, tuple) or len(reference) < 5 or any(reference[5:]):
            return _FOREIGN
        _, kind, key, _, numel = reference[:5]
        if not isinstance(kind, _StorageType) or type(key) is not str or type(numel) is not int or numel < 0:
            return _FOREIGN
        self.storages[key] = _Storage(key, kind.dtype, numel)
        return self.storages[key]


def _next_pickle(stream: IO[bytes]) -> bytes:
    """The bytes of the pickle that starts here, checked for what `_Reader` cannot intercept."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name.startswith("EXT"):
            # Looks objects up in a table of this process, past find_class once it has been used.
            raise pickle.UnpicklingError("an entry of the extension registry")
        if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > stream.tell():
            raise pickle.UnpicklingError("a memo larger than the file")  # the unpickler would allocate it
    end = stream.tell()
    stream.seek(start)
    return stream.read(end - start)


class _PickledFile(Mapping[str, Tensor]):
    """Tensors of an unpickled checkpoint; ``places`` says where each storage lies in the file."""

    def __init__(self, path: Path, content: object, places: Mapping[str, tuple[int, int]]) -> None:
        state = content.get("state_dict", content) if isinstance(content, dict) else {}
        views = state.items() if isinstance(state, dict) else ()
        self._views = {name: view for name, view in views if type(name) is str and isinstance(view, _View)}
        if not self._views:
            raise WeightsError(f"{path}: holds no named tensors; give a published checkpoint")
        self._path = path
        self._places = places
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        self._storages: dict[_Storage, torch.UntypedStorage] = {}

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

    def _storage(self, wanted: _Storage) -> torch.UntypedStorage:
        """The bytes in the file as a storage of their own, once, so that tied tensors stay tied."""
        if wanted in self._storages:
            return self._storages[wanted]
        offset, size = self._places.get(wanted.key, (0, -1))
        nbytes = wanted.numel * wanted.dtype.itemsize
        if size < nbytes or offset + nbytes > self._bytes.numel():
            raise WeightsError(f"{self._path}: cut short, tensor data is missing; download it again")
        storage = self._bytes.untyped_storage()[offset : offset + nbytes]
        if offset % wanted.dtype.itemsize:
            # Legacy files are not aligned. The copy is not kept: it may be needed for one cast only.
            return torch.empty(0, dtype=torch.uint8).set_(storage).clone().untyped_storage()
        self._storages[wanted] = storage
        return storage


def _open_zip(path: Path) -> Mapping[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
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
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise WeightsError(
                    f"{path}: written on a big-endian machine; save it again on a little-endian one"
                )
            data = archive.read(f"{root}data.pkl")
            _next_pickle(io.BytesIO(data))
            content = _Reader(data).load()
            places = {
                name.removeprefix(f"{root}data/"): (_data_offset(file, entry), entry.file_size)
                for name, entry in entries.items()
                if name.startswith(f"{root}data/")
            }
    except (*_PICKLE_ERRORS, zipfile.BadZipFile, RuntimeError, OSError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); download it again") from error
    return _PickledFile(path, content, places)


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin: behind its local header, whose padding only it knows."""
    file.seek(entry.header_offset)
    signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile("an entry without its header")
    return int(entry.header_offset) + 30 + int(name_length) + int(extra_length)


def _open_legacy(path: Path) -> Mapping[str, Tensor]:
    """Four pickles (magic number, version, machine, content), the storage keys, then the storages."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with path.open("rb") as file:
            if file.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
                raise WeightsError(
                    f"{path}: a Python pickle, not a torch checkpoint; give the published file"
                )
            _Reader(_next_pickle(file)).load()
            machine = _Reader(_next_pickle(file)).load()
            if not (isinstance(machine, dict) and machine.get("little_endian") is True):
                raise WeightsError(
                    f"{path}: written on a big-endian machine; save it again on a little-endian one"
                )
            reader = _Reader(_next_pickle(file))
            content = reader.load()
            for key in _Reader(_next_pickle(file)).load():
                (numel,) = struct.unpack("<q", file.read(8))
                size = numel * reader.storages[key].dtype.itemsize
                places[key] = (file.tell(), size)
                file.seek(size, io.SEEK_CUR)
    except (*_PICKLE_ERRORS, OSError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); download it again") from error
    return _PickledFile(path, content, places)
