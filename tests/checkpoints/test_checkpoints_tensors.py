"""Reading weight files: every format bit for bit, nothing executed, every damage one clear message."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copyreg
import json
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from thinksound.checkpoints.tensors import open_tensors
from thinksound.errors import WeightsError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def sample() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    return {
        "float32": base,
        "tied": base,
        "transposed": base.t()[1:, ::2],
        "float64": base.double(),
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "parameter": torch.nn.Parameter(base[:2].clone()),
        "int64": torch.arange(5),
        "uint8": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
    }


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


# --- what is in the file comes out -----------------------------------------------------------------


@FORMATS
def test_every_kind_of_tensor_is_read_bit_for_bit(tmp_path: Path, zipped: bool) -> None:
    path, wanted = tmp_path / "weights.pt", sample()
    torch.save(wanted, path, _use_new_zipfile_serialization=zipped)
    found = open_tensors(path)
    assert list(found) == list(wanted)
    for name in wanted:
        assert_same(found[name], wanted[name].detach())
        assert found[name].data_ptr() % wanted[name].element_size() == 0, "kernels may assume alignment"


@FORMATS
def test_the_state_dict_of_a_module_is_read_without_its_version_notes(tmp_path: Path, zipped: bool) -> None:
    wanted = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)).state_dict()
    assert vars(wanted)["_metadata"]
    torch.save(wanted, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    found = open_tensors(tmp_path / "weights.pt")
    assert list(found) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_number_formats_that_have_no_storage_class_are_read_too(tmp_path: Path) -> None:
    wanted = torch.arange(8).to(torch.uint16), torch.randn(8).to(torch.float8_e4m3fn)
    torch.save(dict(zip("ab", wanted, strict=True)), tmp_path / "weights.pt")
    found = open_tensors(tmp_path / "weights.pt")
    for name, tensor in zip("ab", wanted, strict=True):
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_tied_tensors_stay_one_piece_of_memory(tmp_path: Path) -> None:
    torch.save(sample(), tmp_path / "weights.pt")
    found = open_tensors(tmp_path / "weights.pt")
    assert found["float32"].data_ptr() == found["tied"].data_ptr()


def test_safetensors_are_read_bit_for_bit(tmp_path: Path) -> None:
    wanted = {name: tensor.detach().clone().contiguous() for name, tensor in sample().items()}
    save_file(wanted, tmp_path / "weights.safetensors")
    found = open_tensors(tmp_path / "weights.safetensors")
    assert set(found) == set(wanted)
    for name in wanted:
        assert_same(found[name], wanted[name])


@pytest.mark.parametrize("length", [0x180, 0x280, 0x480])
def test_a_safetensors_header_whose_length_begins_as_a_pickle_does_is_read(
    tmp_path: Path, length: int
) -> None:
    """The file begins with the length, lowest byte first; 0x80 is also how a pickle begins."""
    path, wanted = tmp_path / "weights.safetensors", {"a": torch.ones(2)}
    save_file(wanted, path, {"note": ""})
    without = struct.unpack("<Q", path.read_bytes()[:8])[0]
    save_file(wanted, path, {"note": "x" * (length - without)})
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    assert torch.equal(open_tensors(path)["a"], wanted["a"])


def test_the_content_decides_the_format_and_not_the_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.ckpt")
    assert list(open_tensors(tmp_path / "weights.ckpt")) == ["a"]


@FORMATS
def test_a_trainer_checkpoint_gives_its_state_dict_whatever_else_is_in_it(
    tmp_path: Path, zipped: bool
) -> None:
    """Its classes are gone when it is read, as a trainer's are on a machine that only generates."""
    trainer = types.ModuleType("vanished_trainer")
    source = """
class Settings:
    def __init__(self, **values): self.__dict__.update(values)
class Callback:
    def __reduce__(self): return Callback.restore, (1,), {"best": 2.0}, iter([3]), iter([("k", 4)])
    @staticmethod
    def restore(value): return Callback()
    def __setstate__(self, state): pass
    def append(self, value): pass
    def __setitem__(self, key, value): pass
class Slotted:
    __slots__ = ("a",)
class Named(dict): pass
class Numbers(list): pass
class Choice(__import__("enum").Enum): ONE = 1
def schedule(step): return step
"""
    exec(source, vars(trainer))
    sys.modules["vanished_trainer"] = trainer
    slotted = trainer.Slotted()
    slotted.a = 5
    wanted = collections.OrderedDict(sample())
    checkpoint = {
        "epoch": 7,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": wanted,
        "callbacks": {"ModelCheckpoint{'monitor': None}": trainer.Callback()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(4)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"function": trainer.schedule, "by_class": trainer.Settings}],
        "hyper_parameters": argparse.Namespace(
            settings=trainer.Settings(path=pathlib.PurePosixPath("/data/x"), nested=trainer.Settings()),
            slotted=slotted,
            named=trainer.Named(a=1),
            numbers=trainer.Numbers([1, 2]),
            choice=trainer.Choice.ONE,
            counts=collections.Counter("aab"),
            default=collections.defaultdict(list, {"a": [1]}),
            queue=collections.deque([1], maxlen=3),
            array=np.arange(3.0),
            scalar=np.float32(2.0),
            state=np.random.default_rng(0),
            device=torch.device("cpu"),
            dtype=torch.bfloat16,
            size=torch.Size([1, 2]),
            frozen=frozenset({(1, 2)}),
            quantised=torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8) if zipped else None,
            sparse=torch.ones(2, 2).to_sparse(),
            complex=1j,
            raw=b"bytes",
            cut=slice(1, 2),
        ),
    }
    path = tmp_path / "trainer.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are on their way out of torch
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    del sys.modules["vanished_trainer"]
    found = open_tensors(path)
    assert list(found) == list(wanted)
    for name in wanted:
        assert_same(found[name], wanted[name].detach())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
def test_what_is_not_asked_for_is_not_read_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "trainer.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3)}, "optimizer": {"a": torch.ones(24_000_000)}}, path)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    assert open_tensors(path)["a"].sum() == 3
    assert resident() - before < 20_000_000 < path.stat().st_size


# --- nothing in the file is run --------------------------------------------------------------------


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def with_pickle(path: Path, data: bytes, zipped: bool) -> None:
    """A checkpoint whose content is the pickle ``data``; it has one storage, key "0", of 8 floats."""
    floats = struct.pack("<8f", *range(8))
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/data.pkl", data)
            archive.writestr("weights/data/0", floats)
    else:
        parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
        path.write_bytes(head + data + pickle.dumps(["0"], protocol=2) + struct.pack("<q", 8) + floats)


def hostile_calls(marker: Path) -> dict[str, object]:
    """Objects that make the directory ``marker`` when a plain unpickler meets them."""
    source = f"__import__('os').mkdir({str(marker)!r})"
    return {
        "call": Call(os.mkdir, str(marker)),
        "shell": Call(os.system, f"mkdir '{marker}'"),
        "eval": Call(eval, source),
        "exec": Call(exec, source),
        "process": Call(subprocess.call, ["mkdir", str(marker)]),
        "inside the state dict": {"state_dict": {"a": Call(os.mkdir, str(marker))}},
        "as a name": {"state_dict": {Call(os.mkdir, str(marker)): 1}},
        "nested": Call(Call, Call(eval, source)),
        "in a storage reference": {"a": ("storage", Call(eval, source))},
    }


def raw_pickles(marker: Path) -> dict[str, bytes]:
    """The same by opcodes that no pickler writes; without a STOP they are completed below."""
    name = str(marker).encode()
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"
    system = b"(S'mkdir " + name + b"'\n"
    return {
        "REDUCE of a dotted name": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x02ab\x85R.",
        "STACK_GLOBAL through attributes": b"\x80\x04\x8c\x05torch\x8c\x10utils.os.system_\x93"
        + b"X"
        + struct.pack("<I", 1)
        + b"a\x85R.",
        "INST": b"(S'mkdir " + name + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'mkdir " + name + b"'\no.",
        "getattr chain": b""
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR" + system + b"tR.",
        "call of a rebuild function's result": tensor + b"(tR" + system + b"tR.",
        "rebuild with a callable storage": tensor + b"(cos\nsystem\nI0\n(I1\nt(I1\ntI00\nNtR.",
        "rebuild from type with a foreign function": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN"
        + system
        + b"tNtR.",
        "BUILD on a rebuild function": tensor + b"}S'__call__'\ncos\nsystem\nsb" + system + b"tR.",
        "BUILD slots on a rebuild function": tensor + b"(N}S'name'\nS'x'\nstb.",
        "BUILD on the dictionary class": b"ccollections\nOrderedDict\n(N}S'get'\ncos\nsystem\nstb)R.",
        "BUILD on a foreign class": b"cany\nthing\n(N}S'__new__'\ncos\nsystem\nstb" + system + b"tR.",
        "BUILD on a dtype": b"ctorch\nfloat32\n(N}S'itemsize'\ncos\nsystem\nstb.",
        "NEWOBJ": b"\x80\x02cos\nsystem\nS'mkdir " + name + b"'\n\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c\x01at}\x92.",
        "persistent reference that is a call": b"cos\nsystem\n" + system + b"tRQ.",
        "torch functions": b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR.",
        "torch jit": b"ctorch.jit\n_load\n(S'" + name + b"'\ntR.",
        "torch dynamo": b"ctorch._dynamo.utils\nos.system\n" + system + b"tR.",
        "torch storage with code in its name": b"ctorch\nos.systemStorage\n" + system + b"tR.",
        "numpy's own loader": b"cnumpy\nload\n(S'" + name + b"'\nNI01\ntR.",
    }


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "this was run"


@pytest.mark.parametrize("name", ["call", "shell", "eval", "exec", "process", "inside the state dict"])
def test_the_hostile_objects_do_run_in_a_plain_unpickler(marker: Path, name: str) -> None:
    """The control of what follows."""
    pickle.loads(pickle.dumps(hostile_calls(marker)[name]))
    assert marker.is_dir()


WATCHED = """
import sys
from pathlib import Path
from thinksound.checkpoints.tensors import open_tensors
from thinksound.errors import WeightsError
good, *hostile = map(Path, sys.argv[1:])
list(open_tensors(good).items())
seen = []
def watch(event, arguments):
    if event in ("import", "exec", "compile", "pickle.find_class") or event.startswith(("os.", "subp")):
        seen.append((event, repr(arguments)[:80]))
sys.addaudithook(watch)
for path in hostile:
    try:
        list(open_tensors(path).items())
    except WeightsError:
        pass
    if seen:
        print(path, seen)
        sys.exit(1)
"""


@FORMATS
def test_hostile_files_run_and_import_nothing(tmp_path: Path, marker: Path, zipped: bool) -> None:
    """Watched by an audit hook, which sees every import, call of the system, exec and compile."""
    paths = [tmp_path / "good.pt"]
    with_pickle(paths[0], view(0, "I8\n", "I1\n"), zipped)
    contents = {name: pickle.dumps(value, protocol=2) for name, value in hostile_calls(marker).items()}
    for name, data in (contents | raw_pickles(marker)).items():
        paths.append(tmp_path / f"{name.replace(' ', '_')}.pt")
        with_pickle(paths[-1], data, zipped)
    result = subprocess.run([sys.executable, "-c", WATCHED, *paths], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not marker.exists()


def test_a_hostile_file_does_not_change_how_the_next_one_is_read(tmp_path: Path, marker: Path) -> None:
    torch.save(sample(), tmp_path / "good.pt")
    for data in raw_pickles(marker).values():
        with_pickle(tmp_path / "hostile.pt", data, zipped=True)
        with pytest.raises(WeightsError):
            open_tensors(tmp_path / "hostile.pt")
        found = open_tensors(tmp_path / "good.pt")
        assert all(torch.equal(found[name], tensor.detach()) for name, tensor in sample().items())


@pytest.fixture
def registered() -> Iterator[int]:
    """An entry of the process-wide extension registry, as some library might have made."""
    code = 0x7E57
    copyreg.add_extension("os", "system", code)
    pickle.loads(b"\x83" + struct.pack("<H", code) + b".")  # from now on unpicklers answer from a cache
    yield code
    copyreg.remove_extension("os", "system", code)


def test_the_extension_registry_is_out_of_reach(tmp_path: Path, marker: Path, registered: int) -> None:
    call = b"\x83" + struct.pack("<H", registered) + b"(S'mkdir " + str(marker).encode() + b"'\ntR."
    with_pickle(tmp_path / "hostile.pt", call, zipped=True)
    with pytest.raises(WeightsError, match="extension registry"):
        open_tensors(tmp_path / "hostile.pt")
    assert not marker.exists()


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"hello\nthere\n", "a text file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n <html><body>sign in</body>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"\xff\xd8\xff\xe0" + bytes(600), "of an unknown format"),
        (pickle.dumps({"a": 1}), "a Python pickle, not a torch checkpoint"),
        (b"PK\x03\x04" + bytes(100), "damaged or cut short"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "vae.ckpt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        open_tensors(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.ckpt", tmp_path):
        with pytest.raises(WeightsError, match="cannot be read"):
            open_tensors(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "program.pt")
    with pytest.raises(WeightsError, match="a TorchScript program"):
        open_tensors(tmp_path / "program.pt")


def test_other_zip_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("one.txt", "1")
    with pytest.raises(WeightsError, match="not a torch checkpoint"):
        open_tensors(tmp_path / "photos.zip")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", pickle.dumps({}) * 100)
    with pytest.raises(WeightsError, match="compressed"):
        open_tensors(tmp_path / "packed.pt")


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    for content in ({"epoch": 1}, [torch.ones(1)], {"state_dict": 3}, torch.ones(2), {1: torch.ones(1)}):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(WeightsError, match="holds no named tensors"):
            open_tensors(tmp_path / "weights.pt")


@FORMATS
def test_a_big_endian_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/data.pkl", pickle.dumps({}))
            archive.writestr("weights/byteorder", "big")
    else:
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}]
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head))
    with pytest.raises(WeightsError, match="big-endian"):
        open_tensors(path)


def view(offset: int, shape: str, stride: str, numel: int = 8, key: str = "0") -> bytes:
    """The pickle of ``{"a": tensor}`` with these numbers, whatever they are."""
    reference = b"(S'storage'\nctorch\nFloatStorage\nS'%s'\nS'cpu'\nI%d\ntQ" % (key.encode(), numel)
    sizes = b"I%d\n(%st(%st" % (offset, shape.encode(), stride.encode())
    return b"}S'a'\nctorch._utils\n_rebuild_tensor_v2\n(" + reference + sizes + b"I00\nNtRs."


def test_a_view_made_by_hand_reads_as_meant(tmp_path: Path) -> None:
    """The control of the next test."""
    with_pickle(tmp_path / "weights.pt", view(1, "I2\nI3\n", "I3\nI1\n"), zipped=True)
    assert open_tensors(tmp_path / "weights.pt")["a"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_one_storage_under_two_lengths_is_read_at_each(tmp_path: Path) -> None:
    short, long = view(0, "I2\n", "I1\n", numel=2), view(0, "I8\n", "I1\n")
    with_pickle(tmp_path / "weights.pt", short[:-1] + long[1:].replace(b"S'a'", b"S'b'"), zipped=True)
    found = open_tensors(tmp_path / "weights.pt")
    assert (found["a"].tolist(), found["b"].tolist()) == ([0, 1], list(range(8)))


def test_a_view_cannot_be_changed_once_it_was_checked(tmp_path: Path) -> None:
    moved = view(0, "I2\n", "I1\n").removesuffix(b"s.") + b"}S'offset'\nI100\nsbs."
    with_pickle(tmp_path / "weights.pt", moved, zipped=True)
    assert open_tensors(tmp_path / "weights.pt")["a"].tolist() == [0, 1]


@FORMATS
@pytest.mark.parametrize(
    "data",
    [
        view(0, "I9\n", "I1\n"),
        view(6, "I3\n", "I1\n"),
        view(0, "I3\n", "I4\n"),
        view(-1, "I2\n", "I1\n"),
        view(0, "I-2\n", "I1\n"),
        view(4, "I2\n", "I-1\n"),
        view(0, "I2\nI2\n", "I1\n"),
        view(0, "F2.0\n", "I1\n"),
        view(0, "I9\n", "I1\n", numel=9),
        view(0, "I2\n", "I1\n", numel=-8),
        view(0, "I2\n", "I1\n", key="7"),
        view(10**30, "I2\n", "I1\n"),
        view(0, f"I0\nI{10**30}\n", "I1\nI1\n"),
    ],
)
def test_a_tensor_that_reaches_outside_its_storage_is_refused(
    tmp_path: Path, data: bytes, zipped: bool
) -> None:
    with_pickle(tmp_path / "weights.pt", data, zipped)
    with pytest.raises(WeightsError, match=r"weights\.pt: "):
        open_tensors(tmp_path / "weights.pt")["a"]


# One tensor "a" is in the dictionary that is on the stack.
ONE = view(0, "I8\n", "I1\n").removesuffix(b".")
NEST = 150_000  # a tenth of a megabyte; more than a recursion in C survives


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ONE + b"K\x01" + b"\x85" * NEST + b"Ns.", "a dictionary key that is nested"),
        (ONE + b"K\x01" + b"2\x86" * 60 + b"Ns.", "a dictionary key that is nested"),
        (ONE + b"]Ns.", "a dictionary key that is nested or can change"),
        (b"X\x05\0\0\0torchK\x01" + b"\x85" * NEST + b"\x93.", "a name that is no text"),
        (b"N0" * 1_000_001 + b"N.", "more than 2,000,000 instructions"),
        (b"X" + struct.pack("<I", 1 << 25) + bytes(1 << 25) + b".", "more than 32 MB"),
        (b"ctorch._utils\n_rebuild_parameter\n(" + b"N" * 99 + b"tR.", "not its description"),
        (b"}r\xff\xff\xff\x7f.", "a memo larger than the file"),
        (b"Np-5\n.", "a memo larger than the file"),
        (b"}g-1\n.", "nothing at -1"),
        (b"}\x8b\xff\xff\xff\x7fab.", "damaged"),
        (b"}\x8d" + struct.pack("<Q", 1 << 60) + b"ab.", "damaged"),
        (b"}\x8e" + struct.pack("<Q", 1 << 63) + b"ab.", "damaged"),
        (b"}\x96" + struct.pack("<Q", 1 << 62) + b"ab.", "damaged"),
        (b"}Xn\xff\xff\xffab.", "damaged"),
        (b"}0.", "ends in the middle"),
        (b"}}.", "ends in the middle"),
        (b"\x97.", "no checkpoint has"),
        (view(0, "I4000000\n", "I0\n"), "repeats its numbers"),
        (view(0, "I4\n" * 12, "I0\n" * 12), "repeats its numbers"),
        (view(0, "I1\n" * 17, "I1\n" * 17), "impossible shape"),
    ],
)
def test_a_pickle_that_would_crash_the_process_or_never_end_is_refused(
    tmp_path: Path, data: bytes, words: str
) -> None:
    with_pickle(tmp_path / "weights.pt", data, zipped=not words.startswith("more than"))
    with pytest.raises(WeightsError, match=words):
        open_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "more",
    [
        b"S'b'\n" + b"]" * NEST + b"a" * (NEST - 1) + b"s",  # lists in lists
        b"S'b'\n" + b"}" + b"S'c'\n}" * NEST + b"s" * NEST + b"s",  # dictionaries in dictionaries
        b"S'b'\nK\x01" + b"\x85" * NEST + b"s",  # tuples in tuples
        b"S'b'\n\x8f(K\x01" + b"\x85" * NEST + b"\x90s",  # the same in a set
        b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n << 40) + b"N" for n in range(1 << 17)) + b"u",
        b"K\x01K\x02\x86Ns",  # a key that a trainer could have
    ],
    ids=["lists", "dictionaries", "tuples", "set", "numbers that collide", "pair"],
)
def test_what_is_nested_beside_the_weights_is_not_gone_into(tmp_path: Path, more: bytes) -> None:
    with_pickle(tmp_path / "weights.pt", ONE + more + b".", zipped=True)
    assert open_tensors(tmp_path / "weights.pt")["a"].tolist() == list(range(8))


def test_an_expanded_tensor_of_a_few_numbers_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(3, 4)}, tmp_path / "weights.pt")
    assert torch.equal(open_tensors(tmp_path / "weights.pt")["a"], torch.ones(3, 4))


def test_a_zip_archive_that_lies_is_refused(tmp_path: Path) -> None:
    torch.save(sample(), tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    entry = content.index(b"PK\x01\x02")  # of data.pkl, in the list at the end
    for at, value in ((20, 1), (24, 1 << 31), (42, 1 << 31), (42, 0)):
        path = tmp_path / "lying.pt"
        path.write_bytes(content[: entry + at] + struct.pack("<I", value) + content[entry + at + 4 :])
        with pytest.raises(WeightsError, match="damaged") if value else contextlib.nullcontext():
            dict(open_tensors(path))
    with_pickle(path, ONE + b".", zipped=True)
    content = path.read_bytes()
    size = content.rindex(b"PK\x05\x06") + 12  # of that list
    path.write_bytes(content[:size] + struct.pack("<I", (1 << 32) - 2) + content[size + 4 :])
    with pytest.raises(WeightsError, match="damaged"):
        open_tensors(path)
    with_pickle(path, b"X" + struct.pack("<I", 1 << 25) + bytes(1 << 25) + b".", zipped=True)
    with pytest.raises(WeightsError, match=r"an index of 33,554,438 bytes"):
        open_tensors(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_an_error_and_never_wrong_values(tmp_path: Path, kind: str) -> None:
    path, wanted = tmp_path / "whole", {name: t.detach().clone() for name, t in sample().items()}
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in wanted.items()}, path)
    else:
        torch.save(wanted, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    cut = tmp_path / "cut"
    for length in sorted({*range(0, len(content), 61), *range(len(content) - 40, len(content))}):
        cut.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="cut: "):
            dict(open_tensors(cut))


@FORMATS
def test_flipped_bytes_give_tensors_or_one_kind_of_error(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save(sample(), path, _use_new_zipfile_serialization=zipped)
    content, pick = path.read_bytes(), random.Random(0)
    start = content.index(b"float32") - 60  # in the middle of the pickle
    outcomes = collections.Counter[str]()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(pick.randint(1, 4)):
            damaged[pick.randrange(start, start + 1200)] = pick.randrange(256)
        path.write_bytes(damaged)
        try:
            dict(open_tensors(path))
            outcomes["read"] += 1
        except WeightsError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 50


def test_a_damaged_safetensors_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(WeightsError, match="damaged or cut short"):
        open_tensors(path)
