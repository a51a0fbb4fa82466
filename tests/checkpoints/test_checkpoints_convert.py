"""Conversion: the network alone, bit for bit, whole or not at all, and used when it should be."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support import published
from support.published import KEYS, assert_holds, load_network, load_t5, overwrite, tensors_of

from thinksound.checkpoints import checksums
from thinksound.checkpoints import convert as conversion
from thinksound.checkpoints.load import locate
from thinksound.checkpoints.locate import missing
from thinksound.checkpoints.registry import weight_file
from thinksound.errors import WeightsError
from thinksound.families.find import contents_of, family_of
from thinksound.presets import LIGHT

convert = partial(conversion.convert, contents=contents_of)  # as the command does


@pytest.mark.parametrize("key", KEYS)
def test_conversion_to_float32_changes_no_bit(tmp_path: Path, key: str) -> None:
    folder = published.copies(tmp_path, key)
    (row,) = convert(folder, [key], {})
    assert row.path == folder / weight_file(key).converted_path
    assert locate(folder, key, torch.float32) == row.path
    assert_holds(load_network(folder, key), tensors_of(key))
    original = folder / weight_file(key).path
    shutil.rmtree(original) if original.is_dir() else original.unlink()
    assert missing(folder, [key]) == []
    assert_holds(load_network(folder, key), tensors_of(key))


@pytest.mark.parametrize("key", ["thinksound", "vae", "t5"])
def test_a_converted_file_holds_the_network_alone_in_one_dtype(tmp_path: Path, key: str) -> None:
    folder = published.copies(tmp_path, key)
    seen: list[tuple[str, int, int]] = []
    (row,) = convert(folder, [key], {key: torch.bfloat16}, progress=lambda *step: seen.append(step))
    path = row.path / "model.safetensors" if row.path.is_dir() else row.path
    wanted = {name for name in tensors_of(key) if name != "encoder.embed_tokens.weight"}
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == wanted
        assert {file.get_tensor(name).dtype for name in wanted} == {torch.bfloat16}
        metadata = file.metadata()
    source = folder / weight_file(key).path
    source = source / "pytorch_model.bin" if source.is_dir() else source
    assert metadata == {
        "format": "pt",
        "names": "network",
        "dtype": "bfloat16",
        "source": source.name,
        "source_sha256": checksums.file_sha256(source),
    }
    assert (row.tensors, row.size, row.source_size) == (
        len(wanted),
        path.stat().st_size,
        source.stat().st_size,
    )
    assert seen[-1][0] == key and seen[-1][1] == seen[-1][2] and len(seen) == len(wanted)
    assert_holds(load_network(folder, key, torch.bfloat16), tensors_of(key), torch.bfloat16)


def test_a_converted_text_encoder_is_a_whole_folder(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "t5")
    convert(folder, ["t5"], {})
    names = {path.name for path in (folder / "converted" / "t5-v1_1-xl").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer_config.json",
    }
    shutil.rmtree(folder / "t5-v1_1-xl")
    assert load_t5(folder).encode("a dog barks").shape == (77, 64)


def test_which_file_serves_which_dtype(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "thinksound")
    folder = published.copies(tmp_path, "vae")
    original, converted = folder / "vae.ckpt", folder / "converted" / "vae.safetensors"
    assert locate(folder, "vae", torch.float32) == original
    convert(folder, ["vae"], {"vae": torch.bfloat16})
    caplog.clear()
    assert locate(folder, "vae", torch.bfloat16) == converted
    assert caplog.text == ""
    assert locate(folder, "vae", torch.float32) == original
    assert "holds bfloat16, not float32: loading" in caplog.text
    convert(folder, ["vae"], {"vae": torch.float32})
    assert locate(folder, "vae", torch.float16) == converted
    convert(folder, ["vae"], {"vae": torch.bfloat16})
    original.unlink()
    caplog.clear()
    assert locate(folder, "vae", torch.float32) == converted
    assert "there is no published file: float32 is derived from it" in caplog.text


def test_a_copy_made_from_another_file_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = published.copies(tmp_path, "vae")
    convert(folder, ["vae"], {})
    tensors = published.vae_tensors()
    next(iter(tensors.values())).add_(1)
    published.save({"state_dict": tensors}, folder / "vae.ckpt")
    with pytest.raises(WeightsError, match="changed since first use"):
        load_network(folder, "vae")
    checksums.verify(folder, accept=True)
    caplog.clear()
    assert locate(folder, "vae", torch.float32) == folder / "vae.ckpt"
    assert "made from another file" in caplog.text
    convert(folder, ["vae"], {})
    assert locate(folder, "vae", torch.float32) == folder / "converted" / "vae.safetensors"
    first = next(iter(load_network(folder, "vae").state_dict().values()))
    assert torch.equal(first, next(iter(tensors.values())))


def test_a_changed_converted_file_is_refused(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae")
    convert(folder, ["vae"], {})
    path = folder / "converted" / "vae.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    overwrite(path, bytes(content))
    with pytest.raises(WeightsError, match=r"converted/vae\.safetensors: changed since first use"):
        load_network(folder, "vae")
    os.truncate(path, 20)
    with pytest.raises(WeightsError, match=r"vae\.safetensors: damaged"):
        locate(folder, "vae", torch.float32)


def test_a_failed_conversion_leaves_nothing_and_keeps_the_old_copy(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae", "t5")
    convert(folder, ["vae", "t5"], {})
    kept = (folder / "converted" / "vae.safetensors").read_bytes()
    tensors = published.vae_tensors()
    tensors["autoencoder.decoder.layers.0.bias"] = torch.ones(3, dtype=torch.int64)
    published.save(tensors, folder / "vae.ckpt")
    with pytest.raises(WeightsError, match="changed since first use"):
        convert(folder, ["vae"], {})
    checksums.verify(folder, accept=True)
    with pytest.raises(WeightsError, match=r"decoder\.layers\.0\.bias holds torch\.int64"):
        convert(folder, ["vae"], {})
    assert (folder / "converted" / "vae.safetensors").read_bytes() == kept
    assert {path.name for path in (folder / "converted").iterdir()} == {"vae.safetensors", "t5-v1_1-xl"}


def test_a_disk_that_takes_no_more_leaves_no_file_and_one_message(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = published.copies(tmp_path, "vae", "t5")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # bytes in one file
    try:
        for key in ("vae", "t5"):
            with pytest.raises(WeightsError, match=r"converted/.*: cannot be written \(File too large\)"):
                convert(folder, [key], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((folder / "converted").iterdir()) == []


@pytest.mark.parametrize("wrapped", ["", "module.", "_orig_mod.", "student.dit."])
def test_a_fine_tune_is_converted_behind_any_prefix(tmp_path: Path, wrapped: str) -> None:
    with torch.device("meta"):
        names = family_of(LIGHT).create("dit").state_dict().keys()
    state = {wrapped + name: torch.full((2,), float(index)) for index, name in enumerate(names)}
    others = {"loss.weight": torch.ones(1)} if wrapped == "student.dit." else {}
    published.save({"model": state | others}, tmp_path / "thinksound_light.ckpt")
    (row,) = convert(tmp_path, ["thinksound_light"], {})
    held = load_file(row.path)
    assert {wrapped + name for name in held} == set(state)
    assert all(torch.equal(held[name.removeprefix(wrapped)], value) for name, value in state.items())


@pytest.mark.parametrize("key", ["synchformer", "metaclip", "t5"])
def test_an_encoder_is_converted_behind_a_prefix_too(tmp_path: Path, key: str) -> None:
    folder = published.copies(tmp_path, key)
    path = folder / weight_file(key).path
    for weights in path.glob("*.safetensors") if path.is_dir() else ():
        weights.unlink()
    wrapped = {f"module.{name}": value for name, value in tensors_of(key).items()}
    published.save(wrapped, path / "pytorch_model.bin" if path.is_dir() else path)
    convert(folder, [key], {})
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_holds(load_network(folder, key), tensors_of(key))


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae")
    shutil.copyfile(folder / "vae.ckpt", folder / "thinksound_light.ckpt")
    for key, dtypes, words in (
        ("t5", {}, "weights are missing"),
        ("tiny_vae", {}, "comes converted"),
        ("vae", {"vae": torch.int8}, "give float32, bfloat16 or float16"),
        ("thinksound_light", {}, "holds nothing of diffusion transformer"),
    ):
        with pytest.raises(WeightsError, match=words):
            convert(folder, [key], dtypes)
    assert not (folder / "converted").exists()


def test_numbers_that_are_not_finite_and_views_that_repeat_are_not_converted(tmp_path: Path) -> None:
    name = "autoencoder.decoder.layers.0.bias"
    numbers = torch.ones(1000, 1000)
    for tensors, words in (
        ({name: torch.full((3,), float("nan"))}, "vae: decoder.layers.0.bias holds NaN or infinite"),
        ({name: torch.ones(1).expand(40_000, 40_000)}, "repeats its numbers"),
        ({f"autoencoder.{number}": numbers for number in range(100)}, "share their numbers"),
    ):
        published.save({"state_dict": tensors}, tmp_path / "vae.ckpt")
        with pytest.raises(WeightsError, match=words):
            convert(tmp_path, ["vae"], {})
        (tmp_path / checksums.TABLE).unlink(missing_ok=True)
    assert not list((tmp_path / "converted").glob("*"))


def test_conversion_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """120 MB become 60 MB while the process grows by less than 30 MB beyond the pages of the file."""
    maps = Path("/proc/self/status")
    if not maps.exists():
        pytest.skip("reads Linux's account of memory")
    tensors = {f"autoencoder.decoder.layers.{number}.weight": torch.ones(1000, 1000) for number in range(30)}
    published.save(tensors, tmp_path / "vae.ckpt")
    del tensors

    def anonymous() -> int:
        line = next(line for line in maps.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    before, peak = anonymous(), 0

    def watch(*_: object) -> None:
        nonlocal peak
        peak = max(peak, anonymous())

    convert(tmp_path, ["vae"], {"vae": torch.bfloat16}, progress=watch)
    assert peak - before < 30_000_000
