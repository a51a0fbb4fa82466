"""Published files into networks: strictly, bit for bit, from the right file, in the right dtype."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import published
import pytest
import torch
from reference import SMALL_MMDIT, SMALL_SYNCHFORMER, SMALL_VAE
from safetensors import safe_open
from torch import Tensor, nn

from thinksound.checkpoints import checksums
from thinksound.checkpoints.convert import convert
from thinksound.checkpoints.load import (
    load_metaclip,
    load_mmdit,
    load_synchformer,
    load_t5,
    load_vae,
    locate,
)
from thinksound.checkpoints.locate import missing
from thinksound.checkpoints.registry import WEIGHTS, default_weights_dir, weight_file
from thinksound.config import MMDiTConfig
from thinksound.errors import WeightsError

KEYS = ("thinksound_light", "thinksound", "vae", "synchformer", "metaclip", "t5")


def load_network(weights: Path, key: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network of any published key."""
    if key == "vae":
        return load_vae(weights, key, SMALL_VAE, dtype)
    if key == "synchformer":
        return load_synchformer(weights, key, SMALL_SYNCHFORMER, dtype)
    if key == "metaclip":
        return load_metaclip(weights, key, dtype).model
    if key == "t5":
        return load_t5(weights, key, dtype).model
    return load_mmdit(weights, key, SMALL_MMDIT, dtype)


def tensors_of(key: str) -> dict[str, Tensor]:
    """What the network of ``key`` should hold, by its own names."""
    if key == "vae":
        return {n.removeprefix("autoencoder."): t for n, t in published.vae_tensors().items()}
    if key == "synchformer":
        return {n: t for n, t in published.synchformer_tensors().items() if n.startswith("vfeat_extractor.")}
    if key == "metaclip":
        return published.metaclip_tensors()
    if key == "t5":
        return {n: t for n, t in published.t5_tensors().items() if not n.startswith(("decoder.", "lm_head."))}
    computed = ("t_embed.freqs", "latent_rot", "clip_rot")
    inner = {
        n.removeprefix("model.model."): t
        for n, t in published.mmdit_tensors().items()
        if n.startswith("model.model.")
    }
    return {n: t for n, t in inner.items() if n not in computed}


def assert_holds(network: nn.Module, wanted: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    held = network.state_dict()
    assert set(held) == set(wanted)
    for name, tensor in wanted.items():
        assert held[name].dtype == dtype
        assert torch.equal(held[name], tensor.to(dtype)), name


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every published file, written once; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    published.write_all(folder)
    return folder


@pytest.fixture
def weights(tmp_path: Path, originals: Path) -> Callable[..., Path]:
    """A weights folder with copies of the files of some keys."""

    def make(*keys: str) -> Path:
        folder = tmp_path / "weights"
        folder.mkdir(exist_ok=True)
        for key in keys:
            source = originals / weight_file(key).path
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / source.name)
        return folder

    return make


# --- what loads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_every_published_file_loads_bit_for_bit(weights: Callable[..., Path], key: str) -> None:
    network = load_network(weights(key), key)
    assert_holds(network, tensors_of(key))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(value.is_meta for value in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_are_cast_once_when_another_dtype_is_asked_for(
    weights: Callable[..., Path], dtype: torch.dtype
) -> None:
    for key in ("thinksound_light", "t5"):
        assert_holds(load_network(weights(key), key, dtype), tensors_of(key), dtype)
        shutil.rmtree(weights())


def test_a_trainer_checkpoint_and_the_light_one_give_the_same_network(weights: Callable[..., Path]) -> None:
    folder = weights("thinksound")
    published.save(published.mmdit_tensors(), folder / "thinksound.ckpt")
    assert_holds(load_network(folder, "thinksound"), tensors_of("thinksound_light"))


LAYOUTS = ["model.safetensors", "sharded safetensors", "pytorch_model.bin", "legacy bin", "sharded bin"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_encoders_load_from_every_layout_of_their_folder(
    tmp_path: Path, layout: published.Layout
) -> None:
    clip = published.metaclip_tensors() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    published.write_folder(tmp_path / "metaclip-h14-fullcc2.5b", "clip_tiny", clip, layout)
    published.write_folder(tmp_path / "t5-v1_1-xl", "t5_tiny", published.t5_tensors(), layout)
    assert_holds(load_network(tmp_path, "metaclip"), tensors_of("metaclip"))
    assert_holds(load_network(tmp_path, "t5"), tensors_of("t5"))


def test_the_embedding_of_t5_is_one_tensor_also_after_a_move(weights: Callable[..., Path]) -> None:
    model = load_t5(weights("t5"), "t5", torch.bfloat16).model
    model.to(torch.float32)
    assert model.shared.weight is model.encoder.embed_tokens.weight


def test_weights_stay_on_the_disk_until_they_are_used(weights: Callable[..., Path]) -> None:
    """Two loads of one file share its pages; a copy would not have the file's name in the memory map."""
    folder = weights("thinksound_light")
    network = load_network(folder, "thinksound_light")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("reads Linux's memory map")
    address = next(network.parameters()).data_ptr()
    for line in maps.read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith("/thinksound_light.ckpt")
            return
    pytest.fail("the weights are nowhere in the memory map")


def test_changing_a_loaded_network_leaves_the_file_alone(weights: Callable[..., Path]) -> None:
    folder = weights("vae")
    content = (folder / "vae.ckpt").read_bytes()
    next(load_network(folder, "vae").parameters()).zero_()
    assert (folder / "vae.ckpt").read_bytes() == content


# --- what is refused -----------------------------------------------------------------------------------


def refused(weights: Path, key: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load_network(weights, key)
    assert not (weights / checksums.TABLE).exists(), "a file that did not load was recorded as good"
    return str(caught.value)


def changed(weights: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    tensors = published.mmdit_tensors()
    change(tensors)
    published.save(tensors, weights / "thinksound_light.ckpt")
    return refused(weights, "thinksound_light")


FIRST = "model.model.audio_input_proj.0.bias"


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    message = changed(tmp_path, lambda tensors: tensors.pop(FIRST))
    assert f"{tmp_path}/thinksound_light.ckpt: not the weights of this MMDiT: 1 of " in message
    assert "tensors are missing (audio_input_proj.0.bias …)" in message


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    message = changed(tmp_path, lambda tensors: tensors.update({"model.model.new.weight": torch.ones(2)}))
    assert "1 do not belong to it (new.weight …)" in message


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    message = changed(tmp_path, lambda tensors: tensors.update({FIRST: torch.ones(3)}))
    assert "of another size: audio_input_proj.0.bias is (3,), MMDiT has (64,)" in message


def test_whole_numbers_are_refused(tmp_path: Path) -> None:
    message = changed(tmp_path, lambda tensors: tensors.update({FIRST: torch.ones(64, dtype=torch.int64)}))
    assert "audio_input_proj.0.bias holds torch.int64" in message


def test_a_tensor_under_both_of_its_names_is_refused(tmp_path: Path) -> None:
    message = changed(tmp_path, lambda tensors: tensors.update({f"diffusion.{FIRST}": tensors[FIRST]}))
    assert "audio_input_proj.0.bias is there twice" in message


def test_weights_of_another_size_name_both_sizes(weights: Callable[..., Path]) -> None:
    folder = weights("thinksound_light")
    with pytest.raises(
        WeightsError, match=r"of another size: .* is \(.*\), MMDiT has \(.*1024.*choose the preset"
    ):
        load_mmdit(folder, "thinksound_light", MMDiTConfig(), torch.float32)


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("vae", "thinksound_light", "diffusion transformer"),
        ("vae", "synchformer", "Synchformer"),
        ("thinksound_light", "vae", "audio VAE"),
        ("thinksound_light", "synchformer", "Synchformer"),
        ("synchformer", "thinksound", "diffusion transformer"),
    ],
)
def test_another_networks_file_is_recognised(
    tmp_path: Path, originals: Path, key: str, given: str, words: str
) -> None:
    shutil.copyfile(originals / weight_file(given).path, tmp_path / weight_file(key).path)
    assert f"it looks like {'weights of the ' if words[0].islower() else ''}{words}" in refused(tmp_path, key)


def test_the_weights_of_the_other_text_encoder_are_recognised(tmp_path: Path, originals: Path) -> None:
    published.write_folder(
        tmp_path / "t5-v1_1-xl", "t5_tiny", published.metaclip_tensors(), "model.safetensors"
    )
    assert "it looks like CLIP weights" in refused(tmp_path, "t5")


@pytest.mark.parametrize("key", KEYS[:4])
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "an empty file"), (b"<html>Sign in</html>", "a web page"), (b"todo\n", "a text file")],
)
def test_what_a_failed_download_leaves_is_named(tmp_path: Path, key: str, content: bytes, words: str) -> None:
    (tmp_path / weight_file(key).path).write_bytes(content)
    message = refused(tmp_path, key)
    assert words in message
    assert "download it again" in message


@pytest.mark.parametrize("key", KEYS[:4])
def test_a_truncated_file_is_named(weights: Callable[..., Path], key: str) -> None:
    folder = weights(key)
    path = folder / weight_file(key).path
    os.truncate(path, path.stat().st_size * 2 // 3)
    assert f"{path}: damaged or cut short" in refused(folder, key)


def test_missing_files_are_listed_with_where_they_come_from(tmp_path: Path) -> None:
    for key in KEYS:
        message = refused(tmp_path, key)
        file = WEIGHTS[key]
        assert f"weights are missing in {tmp_path}:\n  {file.path}" in message
        assert f"from {file.repository} on the Hugging Face hub" in message
    assert [file.key for file in missing(tmp_path, KEYS)] == list(KEYS)


def test_a_folder_without_one_of_its_parts_says_which(weights: Callable[..., Path], tmp_path: Path) -> None:
    folder = weights("t5") / "t5-v1_1-xl"
    (folder / "spiece.model").unlink()
    (folder / "config.json").unlink()
    message = refused(folder.parent, "t5")
    assert "t5-v1_1-xl/: config.json, its tokenizer (tokenizer.json or spiece.model" in message


def test_a_missing_shard_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "t5-v1_1-xl"
    published.write_folder(folder, "t5_tiny", published.t5_tensors(), "sharded bin")
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    assert "t5-v1_1-xl/: pytorch_model-00002-of-00003.bin, from google/t5-v1_1-xl" in refused(tmp_path, "t5")
    (folder / "pytorch_model.bin.index.json").write_text("<html>")
    assert "not an index of weights" in refused(tmp_path, "t5")


def test_an_unknown_key_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match="thinksound_medium: no such weights; known are thinksound_light, "
    ):
        locate(tmp_path, "thinksound_medium", torch.float32)


# --- checksums -----------------------------------------------------------------------------------------


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # whatever the clock's grain is


def test_a_file_is_recorded_when_it_first_loads_and_not_hashed_again(
    weights: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = weights("vae")
    load_network(folder, "vae")
    (name, record), *others = json.loads((folder / checksums.TABLE).read_text()).items()
    assert name == "vae.ckpt" and not others
    assert record["sha256"] == checksums.file_sha256(folder / "vae.ckpt")
    before = (folder / checksums.TABLE).stat()
    load_network(folder, "vae")
    assert (folder / checksums.TABLE).stat().st_ino == before.st_ino, "written again"


def test_a_file_changed_after_first_use_is_refused_until_it_is_accepted(weights: Callable[..., Path]) -> None:
    folder = weights("vae")
    load_network(folder, "vae")
    tensors = published.vae_tensors()
    next(iter(tensors.values())).add_(1)
    published.save({"state_dict": tensors}, folder / "vae.ckpt")
    with pytest.raises(WeightsError, match=r"vae\.ckpt: changed since first use .* verify --accept"):
        load_network(folder, "vae")
    assert [row.status for row in checksums.verify(folder) if row.path.name == "vae.ckpt"] == ["changed"]
    with pytest.raises(WeightsError, match="changed since first use"):
        load_network(folder, "vae")
    rows = checksums.verify(folder, accept=True)
    assert [row.status for row in rows if row.path.name == "vae.ckpt"] == ["accepted"]
    assert torch.equal(
        next(iter(load_network(folder, "vae").state_dict().values())), next(iter(tensors.values()))
    )


def test_one_flipped_bit_is_noticed(weights: Callable[..., Path]) -> None:
    folder = weights("synchformer")
    load_network(folder, "synchformer")
    path = folder / "synchformer_state_dict.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    overwrite(path, bytes(content))
    with pytest.raises(WeightsError, match="changed since first use"):
        load_network(folder, "synchformer")


def test_configuration_and_tokenizer_of_a_folder_are_watched_too(weights: Callable[..., Path]) -> None:
    folder = weights("t5")
    load_network(folder, "t5")
    config = folder / "t5-v1_1-xl" / "config.json"
    overwrite(config, config.read_bytes() + b"\n")
    with pytest.raises(WeightsError, match=r"config\.json: changed since first use"):
        load_network(folder, "t5")


def test_a_touched_or_copied_file_with_the_same_bytes_is_the_same_file(weights: Callable[..., Path]) -> None:
    folder = weights("vae")
    load_network(folder, "vae")
    overwrite(folder / "vae.ckpt", (folder / "vae.ckpt").read_bytes())
    load_network(folder, "vae")
    assert json.loads((folder / checksums.TABLE).read_text())["vae.ckpt"]["mtime_ns"] == 1


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions do not bind the administrator, as whom containers run their tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder(originals: Path) -> Iterator[Path]:
    """A weights folder with the VAE that every user can reach (those of pytest are private)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copyfile(originals / "vae.ckpt", folder / "vae.ckpt")
        yield folder
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_written_works_without_a_record(
    open_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "thinksound")
    open_folder.chmod(0o555)
    with without_privileges():
        assert_holds(load_network(open_folder, "vae"), tensors_of("vae"))
    assert [path.name for path in open_folder.iterdir()] == ["vae.ckpt"]
    assert "not recorded" in caplog.text


def test_a_file_that_cannot_be_read_is_named(open_folder: Path) -> None:
    (open_folder / "vae.ckpt").chmod(0o000)
    with (
        without_privileges(),
        pytest.raises(WeightsError, match=r"vae\.ckpt: cannot be read \(Permission denied\)"),
    ):
        load_network(open_folder, "vae")
    open_folder.chmod(0o000)
    with (
        without_privileges(),
        pytest.raises(WeightsError, match=r"vae\.ckpt: cannot be read \(Permission denied\)"),
    ):
        load_network(open_folder, "vae")


def test_a_damaged_table_says_what_to_do(weights: Callable[..., Path]) -> None:
    folder = weights("vae")
    for content in ("{", "[]", '{"vae.ckpt": 1}', '{"vae.ckpt": {"sha256": ""}}'):
        (folder / checksums.TABLE).write_text(content)
        with pytest.raises(WeightsError, match=r"checksums\.json: cannot be read .*; delete it"):
            load_network(folder, "vae")


def test_bundled_files_are_held_to_their_committed_table(tmp_path: Path) -> None:
    shutil.copytree(default_bundled(), tmp_path / "tiny")
    rows = {row.path: row.status for row in checksums.verify(tmp_path)}
    assert set(rows.values()) == {"ok"}
    path = tmp_path / "tiny" / "vae.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    from thinksound.presets import TINY

    with pytest.raises(WeightsError, match=r"vae\.safetensors: not the file that comes with this project"):
        load_vae(tmp_path, "tiny_vae", TINY.vae, torch.float32)
    rows = {row.path: row.status for row in checksums.verify(tmp_path, accept=True)}
    assert rows[path] == "changed", "a bundled file must not be acceptable"
    assert not (tmp_path / checksums.TABLE).exists()


def test_bundled_files_are_found_beside_the_package_from_any_weights_folder(tmp_path: Path) -> None:
    from thinksound.presets import TINY

    network = load_vae(tmp_path / "elsewhere", "tiny_vae", TINY.vae, torch.float32)
    assert next(network.parameters()).isfinite().all()
    assert not (tmp_path / "elsewhere").exists()


def default_bundled() -> Path:
    return Path(__file__).parents[1] / "weights" / "tiny"


# --- conversion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_conversion_to_float32_changes_no_bit(weights: Callable[..., Path], key: str) -> None:
    folder = weights(key)
    (row,) = convert(folder, [key], {})
    assert row.path == folder / weight_file(key).converted_path
    assert locate(folder, key, torch.float32) == row.path
    assert_holds(load_network(folder, key), tensors_of(key))
    original = folder / weight_file(key).path
    shutil.rmtree(original) if original.is_dir() else original.unlink()
    assert missing(folder, [key]) == []
    assert_holds(load_network(folder, key), tensors_of(key))


@pytest.mark.parametrize("key", ["thinksound", "vae", "t5"])
def test_a_converted_file_holds_the_network_alone_in_one_dtype(
    weights: Callable[..., Path], key: str
) -> None:
    folder = weights(key)
    seen: list[tuple[str, int, int]] = []
    (row,) = convert(folder, [key], {key: torch.bfloat16}, lambda *step: seen.append(step))
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


def test_a_converted_text_encoder_is_a_whole_folder(weights: Callable[..., Path]) -> None:
    folder = weights("t5")
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
    assert load_t5(folder, "t5", torch.float32).encode("a dog barks").shape == (77, 64)


def test_which_file_serves_which_dtype(
    weights: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "thinksound")
    folder = weights("vae")
    original, converted = folder / "vae.ckpt", folder / "converted" / "vae.safetensors"
    assert locate(folder, "vae", torch.float32) == original
    convert(folder, ["vae"], {"vae": torch.bfloat16})
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


def test_a_copy_made_from_another_file_is_not_used(
    weights: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = weights("vae")
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
    checksums.verify(folder, accept=True)
    assert locate(folder, "vae", torch.float32) == folder / "converted" / "vae.safetensors"


def test_a_changed_converted_file_is_refused(weights: Callable[..., Path]) -> None:
    folder = weights("vae")
    convert(folder, ["vae"], {})
    load_network(folder, "vae")
    path = folder / "converted" / "vae.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    overwrite(path, bytes(content))
    with pytest.raises(WeightsError, match=r"converted/vae\.safetensors: changed since first use"):
        load_network(folder, "vae")
    os.truncate(path, 20)
    with pytest.raises(WeightsError, match=r"vae\.safetensors: damaged"):
        locate(folder, "vae", torch.float32)


def test_a_failed_conversion_leaves_nothing_and_keeps_the_old_copy(weights: Callable[..., Path]) -> None:
    folder = weights("vae", "t5")
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


def test_what_cannot_be_converted_is_said(weights: Callable[..., Path]) -> None:
    folder = weights("vae")
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

    convert(tmp_path, ["vae"], {"vae": torch.bfloat16}, watch)
    assert peak - before < 30_000_000


# --- the folder ----------------------------------------------------------------------------------------


def test_the_weights_folder_is_chosen_by_the_environment_or_is_the_checkouts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("THINKSOUND_WEIGHTS", str(tmp_path / "mine"))
    assert default_weights_dir() == tmp_path / "mine"
    monkeypatch.delenv("THINKSOUND_WEIGHTS")
    assert default_weights_dir() == Path(__file__).parents[1] / "weights"


def test_the_folder_readme_names_every_published_file_and_its_licence() -> None:
    text = (Path(__file__).parents[1] / "weights" / "README.md").read_text()
    for file in WEIGHTS.values():
        if not file.bundled:
            start = f"| `{file.path}{'/' if file.is_folder else ''}` |"
            (row,) = [line for line in text.splitlines() if line.startswith(start)]
            assert file.licence in row
            assert f"{file.size / 1e9:.2f} GB" in row
            assert str(file.repository) in row
