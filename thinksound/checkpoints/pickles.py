"""An unpickler for checkpoints that runs nothing, imports nothing, and is bounded in time and memory.

Python's own unpickler calls any function that the file names and hashes nested keys in C without a limit.
This one knows dictionaries, lists, tuples, strings, numbers and tensors. Every other object in a checkpoint,
such as a callback or a random generator, becomes `FOREIGN`, which accepts any arguments and state and does
nothing. Dictionary entries are kept only under string keys, because only those name tensors; other keys are
never hashed. Instructions, bytes and memo entries are limited, so time and memory are bounded by the size of
the file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any, Final

import torch

# The exceptions that `read_pickle` raises for damaged or hostile bytes.
PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, struct.error)

# A full trainer checkpoint with moving averages and optimiser state takes 2 MB and 300,000 instructions.
LARGEST_PICKLE: Final = 1 << 25  # bytes
_MOST_INSTRUCTIONS = 2_000_000
_MOST_ARGUMENTS = 16  # of a function that builds a tensor
_MOST_DIMENSIONS = 16
_LARGEST = 1 << 48  # upper bound of sizes, strides and offsets
_SMALL = 1 << 20  # bytes that a view may have, however small its storage is

# Storage classes by their names in a pickle. Quantised storages are left out, since no network here has
# any: their tensors become `FOREIGN`.
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


class _Foreign:
    """Stands for every object, class and function that is not a tensor."""

    __slots__ = ()


FOREIGN = _Foreign()
_DICT_CLASS = _Foreign()  # collections.OrderedDict
_UNSET = _Foreign()  # an empty entry of the memo


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class _Dtype:
    dtype: torch.dtype


@dataclass(frozen=True)
class _Rebuild:
    """One of torch's functions that build tensors."""

    call: Callable[..., object]


@dataclass(frozen=True)
class Storage:
    """The bytes behind tensors, as the file describes them."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class View:
    """A tensor as the file describes it."""

    storage: Storage
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
        elements = math.prod(self.shape)
        if elements:
            last = self.offset + sum(
                (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
            )
            if (last + 1) * self.dtype.itemsize > self.storage.nbytes:
                raise ValueError("a tensor that is larger than its storage")
        # Zero or overlapping strides repeat values: a few bytes could become terabytes.
        if elements * self.dtype.itemsize > max(self.storage.nbytes, _SMALL):
            raise ValueError("a tensor that repeats its numbers over and over")


def _sizes(given: object) -> tuple[Any, ...]:
    if not isinstance(given, (tuple, list)) or len(given) > _MOST_DIMENSIONS:
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return tuple(given)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> object:
    if not isinstance(storage, Storage):
        return FOREIGN
    return View(storage, storage.dtype, offset, _sizes(shape), _sizes(stride))


def _rebuild_tensor_v2(*arguments: Any) -> object:
    # The seventh argument marks conjugated or negated views, which no weight file has.
    return FOREIGN if any(arguments[6:]) else _rebuild_tensor(*arguments)


def _rebuild_tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> object:
    dtype = rest[2]
    if not isinstance(storage, Storage) or not isinstance(dtype, _Dtype):
        return FOREIGN
    return View(storage, dtype.dtype, offset, _sizes(shape), _sizes(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> object:
    return tensor


def _rebuild_from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> object:
    # torch pickles a tensor subclass as a function and its arguments. The function is never this one again.
    if not isinstance(function, _Rebuild) or function.call is _rebuild_from_type:
        return FOREIGN
    return _call(function, arguments)


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


def _call(function: _Rebuild, arguments: object) -> object:
    if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
        raise pickle.UnpicklingError("a tensor made from what is not its description")
    return function.call(*arguments)


def _global(module: object, name: object) -> object:
    if type(module) is not str or type(name) is not str:
        raise pickle.UnpicklingError("a name that is no text")
    if module == "collections" and name == "OrderedDict":
        return _DICT_CLASS
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
        return _StorageType(_STORAGES[name])
    if module == "torch" and name in _DTYPES:
        return _Dtype(_DTYPES[name])
    if module in ("torch._utils", "torch._tensor", "torch.tensor") and name in _REBUILD:
        return _Rebuild(_REBUILD[name])
    return FOREIGN


def read_pickle(stream: IO[bytes]) -> tuple[object, dict[str, Storage]]:
    """Returns the object whose pickle starts at the position of ``stream``, and its storages by key.

    ``stream`` is left at the end of the pickle. Raises one of `PICKLE_ERRORS` for bytes that are not a
    pickle, and for a pickle beyond the limits above.
    """
    start = stream.tell()
    data = stream.read(LARGEST_PICKLE)
    window = io.BytesIO(data)
    machine = _Machine()
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(window)):
            if number + machine.copied > _MOST_INSTRUCTIONS:
                raise pickle.UnpicklingError(f"a pickle of more than {_MOST_INSTRUCTIONS:,} instructions")
            machine.step(opcode.name, argument, position)
    except ValueError:
        if len(data) == LARGEST_PICKLE == window.tell():
            raise pickle.UnpicklingError(f"a pickle of more than {LARGEST_PICKLE >> 20} MB") from None
        raise
    stream.seek(start + window.tell())
    return machine.stack[-1], machine.storages


class _Machine:
    """The state of the unpickler between two instructions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each open mark
        self.memo: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self.copied = 0  # items that were visited a second time; they count as instructions

    def step(self, name: str, argument: Any, position: int | None) -> None:
        """Carry out one instruction, which is at ``position`` in the pickle."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _FIXED:
            self.stack.append(_FIXED[name]())
        elif name in _TUPLES:
            self._tuple(_TUPLES[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._put(argument, position or 0)
        elif name == "MEMOIZE":
            self.memo.append(self.stack[-1])
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._get(argument)
        elif name in _METHODS:
            _METHODS[name](self)
        elif name == "GLOBAL":
            self.stack.append(_global(*argument.split(" ", 1)))
        elif name == "INST":
            self._items()
            self.stack.append(FOREIGN)
        elif name.startswith("EXT"):
            # These would look objects up in a table of this process.
            raise pickle.UnpicklingError("an entry of the extension registry")
        elif name == "STOP":
            if self.outer or len(self.stack) != 1:
                raise pickle.UnpicklingError("a pickle that ends in the middle of something")
        elif name not in ("PROTO", "FRAME"):
            raise pickle.UnpicklingError(f"an instruction that no checkpoint has ({name})")

    def _items(self) -> list[Any]:
        """Returns the items above the last mark, and removes both."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _put(self, index: int, position: int) -> None:
        if not 0 <= index <= position:
            raise pickle.UnpicklingError("a memo larger than the file")
        self.memo.extend([_UNSET] * (index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    def _get(self, index: int) -> None:
        if index < 0 or self.memo[index] is _UNSET:
            raise pickle.UnpicklingError(f"nothing at {index} in the memo")
        self.stack.append(self.memo[index])

    def _mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._items()

    def _duplicate(self) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def _marked_tuple(self) -> None:
        items = self._items()
        self.stack.append(tuple(items))

    def _marked_list(self) -> None:
        items = self._items()
        self.stack.append(items)

    def _marked_dict(self) -> None:
        items = self._items()
        self.stack.append({})
        self._set(items[::2], items[1::2])

    def _marked_foreign(self) -> None:
        self._items()
        self.stack.append(FOREIGN)

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key], [value])

    def _set_items(self) -> None:
        items = self._items()
        self._set(items[::2], items[1::2])

    def _set(self, keys: Iterable[Any], values: Iterable[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            return
        for key, value in zip(keys, values, strict=True):
            if type(key) is str:
                target[key] = value
            elif not _is_key(key):
                raise pickle.UnpicklingError("a dictionary key that is nested or can change")

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_global(module, name))

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, _Rebuild):
            self.stack.append(_call(function, arguments))
        elif function is _DICT_CLASS:
            self.stack.append({})
            if arguments:  # Python 2 wrote [[key, value], …]
                (pairs,) = arguments
                self.copied += len(pairs)
                self._set([key for key, _ in pairs], [value for _, value in pairs])
        else:
            self.stack.append(FOREIGN)

    def _new_object(self, operands: int) -> None:
        kind = [self.stack.pop() for _ in range(operands)][-1]
        self.stack.append({} if kind is _DICT_CLASS else FOREIGN)

    def _persistent(self) -> None:
        # ("storage", type, key, device, elements[, view of another storage: torch 0.3 and older])
        reference = self.stack.pop()
        found: object = FOREIGN
        if isinstance(reference, tuple) and len(reference) in (5, 6) and not any(reference[5:]):
            kind, key, numel = reference[1], reference[2], reference[4]
            if isinstance(kind, _StorageType) and type(key) is str and type(numel) is int:
                if not 0 <= numel < _LARGEST:
                    raise pickle.UnpicklingError("a storage of impossible size")
                found = self.storages[key] = Storage(key, kind.dtype, numel)
        self.stack.append(found)


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_FIXED: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: FOREIGN,
    "PERSID": lambda: FOREIGN,
    "BINBYTES": lambda: FOREIGN,
    "SHORT_BINBYTES": lambda: FOREIGN,
    "BINBYTES8": lambda: FOREIGN,
    "BYTEARRAY8": lambda: FOREIGN,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: dict[str, Callable[[_Machine], object]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._items,
    "DUP": _Machine._duplicate,
    "TUPLE": _Machine._marked_tuple,
    "LIST": _Machine._marked_list,
    "DICT": _Machine._marked_dict,
    "FROZENSET": _Machine._marked_foreign,
    "OBJ": _Machine._marked_foreign,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._items,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": lambda machine: machine._new_object(2),
    "NEWOBJ_EX": lambda machine: machine._new_object(3),
    "BUILD": lambda machine: machine.stack.pop(),  # attributes, such as the versions of modules
    "BINPERSID": _Machine._persistent,
}


def _is_key(key: object) -> bool:
    """Whether a checkpoint could have this key: a flat value, or a tuple of a few values."""
    parts = [key]
    for _ in range(2 * _MOST_ARGUMENTS):
        if not parts:
            return True
        part = parts.pop()
        if isinstance(part, (list, dict)):
            return False
        if isinstance(part, tuple):
            parts += part[: 2 * _MOST_ARGUMENTS]
    return not parts
