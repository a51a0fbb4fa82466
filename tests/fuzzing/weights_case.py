"""One damaged weight file, configuration or table through load or convert."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import published

from fuzzing import WrongResult
from fuzzing.mutations import BYTES, flip_bits, mutate_json, odd_value
from thinksound.checkpoints import checksums
from thinksound.checkpoints.convert import convert
from thinksound.checkpoints.registry import weight_file
from thinksound.families.find import contents_of

LAYOUTS = ("model.safetensors", "sharded safetensors", "pytorch_model.bin", "legacy bin", "sharded bin")

_CONTENTS: dict[str, Callable[[], object]] = {
    "thinksound_light": published.mmdit_tensors,
    "vae": lambda: published.trainer_checkpoint(published.vae_tensors()),
    "synchformer": published.synchformer_tensors,
}


def make_weights(folder: Path, key: str, rng: random.Random) -> str:
    """Write a weights folder with the files of ``key``, one of them damaged; returns what was damaged."""
    file = weight_file(key)
    if file.is_folder:
        description = {"metaclip": "clip_tiny", "t5": "t5_tiny"}[key]
        tensors = {"metaclip": published.metaclip_tensors, "t5": published.t5_tensors}[key]()
        published.write_folder(folder / file.path, description, tensors, rng.choice(LAYOUTS))  # type: ignore[arg-type]
        victims = sorted((folder / file.path).iterdir())
    else:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(published.originals() / file.path, folder / file.path)
        victims = [folder / file.path]
        way = rng.random()
        if way < 0.25:
            convert(folder, [key], {})
            (folder / file.path).unlink()
            victims = [folder / file.converted_path]
        elif way < 0.4:
            torch.save(_CONTENTS[key](), folder / file.path, _use_new_zipfile_serialization=False)
    if rng.random() < 0.1:
        checksums.record(folder, victims)
        victims = [folder / checksums.TABLE]
    victim = rng.choice(victims)
    changed, how = _damage(victim.read_bytes(), victim, rng)
    victim.write_bytes(changed)
    return f"{victim.relative_to(folder)}: {how}"


def _damage(data: bytes, path: Path, rng: random.Random) -> tuple[bytes, str]:
    mutation: Callable[[bytes, random.Random], bytes]
    if path.suffix == ".json":
        mutation = rng.choice((mutate_json, mutate_json, mutate_json, flip_bits))
    elif data[8:9] == b"{" and rng.random() < 0.6:
        mutation = _mutate_header
    elif data.startswith(b"PK") and rng.random() < 0.7:
        mutation = _mutate_archive
    else:
        mutation = rng.choice(BYTES)
    return mutation(data, rng), mutation.__name__.strip("_")


def _mutate_header(data: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file: one of its values, or its length."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.15:
        return struct.pack("<Q", rng.choice((0, 1, length + 8, 1 << 32, 1 << 62, (1 << 64) - 1))) + data[8:]
    if rng.random() < 0.5:
        described = json.loads(header)
        name = rng.choice([each for each in described if each != "__metadata__"])
        entry = described[name]
        way = rng.randrange(5)
        if way == 0:
            entry["dtype"] = rng.choice(("F32", "F64", "I64", "BOOL", "F8_E4M3", "BF16", "U8", "nothing"))
        elif way == 1:
            entry["shape"] = rng.choice(
                ([], [0], [-1], [1 << 62, 4], [1 << 40], [1] * 3000, entry["shape"][::-1])
            )
        elif way == 2:
            entry["data_offsets"] = rng.choice(([0, 0], [4, 0], [0, 1 << 62], [-4, 4], [1, 5], []))
        elif way == 3:
            described[rng.choice(("", "x" * 10_000, "a\x1b[31m", name + "."))] = described.pop(name)
        else:
            described["__metadata__"] = odd_value(rng)
        try:
            header = json.dumps(described).encode()
        except RecursionError:
            header = b"{" * length
    else:
        header = mutate_json(header, rng)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + rest


def _mutate_archive(data: bytes, rng: random.Random) -> bytes:
    """The pickle in a zip archive of torch: damaged, or another one altogether; or a tensor of no numbers."""
    import io

    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with (
        source,
        zipfile.ZipFile(target, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive,
    ):
        names = source.namelist()
        spoilt = rng.choice([name for name in names if "/data/" in name] or names)
        hostile = rng.random() < 0.8
        for name in names:
            content = source.read(name)
            if hostile and name.endswith("data.pkl"):
                content = _hostile_pickle(content, rng)
            elif not hostile and name == spoilt:
                content = rng.choice((b"\xff" * len(content), b"", content * 2, content[:-1]))
            archive.writestr(name, content)
    return target.getvalue()


def _hostile_pickle(pickled: bytes, rng: random.Random) -> bytes:
    deep = rng.choice((1000, 200_000))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: rng.choice(BYTES)(pickled, rng),
        lambda: rng.choice(BYTES)(pickled, rng),
        lambda: pickle.dumps(odd_value(rng)),
        lambda: b"\x80\x02}" + b"N" + b"\x85" * deep + b"K\x01s.",  # a key of nested tuples
        lambda: b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".",  # lists in lists
        lambda: b"\x80\x02}" + b"N" + b"\x86q\x000h\x00h\x00" * 40 + b"N\x86K\x01s.",
        lambda: b"\x80\x02}N" + b"2\x86" * 60 + b"K\x01s.",  # each tuple holds the one before twice
        lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",  # a text of an exabyte
        lambda: b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"\x01.",  # a number of a gigabyte
        lambda: b"\x80\x02r\xff\xff\xff\xff.",
        lambda: b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
        lambda: b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001/0\x85R.",
        lambda: b"\x80\x02}(" + b"".join(b"X\x02\x00\x00\x00%02dK\x01" % n for n in range(100)) + b"u.",
        lambda: b"\x80\x02}" + b"(" * deep + b"t" * deep + b".",
    )
    return rng.choice(ways)()


def run_weights(folder: Path, output: Path, case: dict[str, Any]) -> str:
    """Load the network, or convert the file; what loads must hold numbers."""
    key = case["key"]
    if case["convert"]:
        (row,) = convert(folder, [key], {key: torch.bfloat16}, contents_of)
        return f"converted: {row.tensors} tensors"
    network = published.load_network(folder, key)
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise WrongResult(f"{name} was loaded and holds values that are not numbers")
    return "loaded"
