"""Published files into networks: strictly, bit for bit, from the right file, in the right dtype."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import paths, published
from support.networks import load_as
from support.published import KEYS, assert_holds, load_network, load_t5, overwrite, tensors_of
from support.reference import SMALL_MMDIT
from torch import Tensor

from thinksound.checkpoints import checksums
from thinksound.checkpoints.load import load_file, locate
from thinksound.checkpoints.locate import missing
from thinksound.checkpoints.registry import WEIGHTS, default_weights_dir, weight_file
from thinksound.errors import WeightsError
from thinksound.models.mmdit import MMDiT, MMDiTConfig

# --- what loads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_every_published_file_loads_bit_for_bit(tmp_path: Path, key: str) -> None:
    network = load_network(published.copies(tmp_path, key), key)
    assert_holds(network, tensors_of(key))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(value.is_meta for value in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_are_cast_once_when_another_dtype_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    for key in ("thinksound_light", "t5"):
        assert_holds(load_network(published.copies(tmp_path, key), key, dtype), tensors_of(key), dtype)
        shutil.rmtree(published.copies(tmp_path))


def test_a_trainer_checkpoint_and_the_light_one_give_the_same_network(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "thinksound")
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


def test_the_embedding_of_t5_is_one_tensor_also_after_a_move(tmp_path: Path) -> None:
    model = load_t5(published.copies(tmp_path, "t5"), torch.bfloat16).model
    model.to(torch.float32)
    assert model.shared.weight is model.encoder.embed_tokens.weight


def test_weights_stay_on_the_disk_until_they_are_used(tmp_path: Path) -> None:
    """Two loads of one file share its pages; a copy would not have the file's name in the memory map."""
    folder = published.copies(tmp_path, "thinksound_light")
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


def test_changing_a_loaded_network_leaves_the_file_alone(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae")
    content = (folder / "vae.ckpt").read_bytes()
    next(load_network(folder, "vae").parameters()).zero_()
    assert (folder / "vae.ckpt").read_bytes() == content


@pytest.mark.parametrize(
    "prefix",
    [
        *(
            "module.",
            "_orig_mod.",
            "model.",
            "ema.",
            "",
            "model.module._orig_mod.",
            "base.net.",
            "student.dit.",
        ),
        *("_orig_mod.model.model.", "diffusion.model.model._orig_mod.", "module.diffusion.model.model."),
    ],
)
def test_a_fine_tune_loads_behind_the_prefix_that_its_trainer_put_there(tmp_path: Path, prefix: str) -> None:
    wanted = tensors_of("thinksound_light")
    path = tmp_path / "thinksound_light.ckpt"
    others = {"loss.weight": torch.ones(3)} if prefix.endswith((".dit.", "model.")) else {}
    others |= {f"{prefix}t_embed.freqs": torch.ones(4)}  # a table from older files
    published.save({prefix + name: value for name, value in wanted.items()} | others, path)
    assert_holds(load_network(tmp_path, "thinksound_light"), wanted)
    checkpoint = tmp_path / "fine-tune.pt"
    published.save(
        {"epoch": 3, "state_dict": {prefix + name: value for name, value in wanted.items()}}, checkpoint
    )
    with torch.device("meta"):
        network = MMDiT(SMALL_MMDIT)
    assert_holds(load_file(network, checkpoint, "thinksound", torch.float32), wanted)


@pytest.mark.parametrize(
    "wrapper",
    ["_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"],
)
def test_a_fine_tune_loads_whose_blocks_were_wrapped_one_by_one(tmp_path: Path, wrapper: str) -> None:
    wanted = tensors_of("thinksound_light")
    wrapped = {name.replace("_blocks.0.", f"_blocks.0.{wrapper}."): value for name, value in wanted.items()}
    assert wrapped.keys() != wanted.keys()
    published.save(
        {f"model.model.{name}": value for name, value in wrapped.items()}, tmp_path / "thinksound_light.ckpt"
    )
    assert_holds(load_network(tmp_path, "thinksound_light"), wanted)


@pytest.mark.parametrize("key", ["vae", "t5", "metaclip", "synchformer"])
def test_other_networks_load_behind_a_wrapper_too(tmp_path: Path, key: str) -> None:
    folder = published.copies(tmp_path, key)
    path = folder / weight_file(key).path
    for weights in path.glob("*.safetensors") if path.is_dir() else ():
        weights.unlink()
    path = path / "pytorch_model.bin" if path.is_dir() else path
    for wrap in ("module.", "model.", "_orig_mod.net."):
        published.save({wrap + name: value for name, value in tensors_of(key).items()}, path)
        assert_holds(load_network(folder, key), tensors_of(key))
        (folder / checksums.TABLE).unlink()


@pytest.mark.parametrize("key", ["model", "module", "model_state_dict", "ema", "state_dict"])
def test_a_fine_tune_loads_from_what_its_trainer_wrapped_around_it(tmp_path: Path, key: str) -> None:
    state = {f"module.{name}": value for name, value in tensors_of("thinksound_light").items()}
    optimiser = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
    for content in ({key: state, "optimizer": optimiser}, {"model": {key: state}}):
        published.save(content, tmp_path / "thinksound_light.ckpt")
        assert_holds(load_network(tmp_path, "thinksound_light"), tensors_of("thinksound_light"))
        (tmp_path / checksums.TABLE).unlink()


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


def test_what_is_behind_a_prefix_must_be_whole_and_the_only_one(tmp_path: Path) -> None:
    def message(tensors: object) -> str:
        published.save(tensors, tmp_path / "thinksound_light.ckpt")
        return refused(tmp_path, "thinksound_light")

    wanted = tensors_of("thinksound_light")
    state = {f"net.{name}": value for name, value in wanted.items()}
    first = next(iter(state))
    assert f"1 of {len(wanted)} tensors are missing" in message(
        {n: v for n, v in state.items() if n != first}
    )
    assert "1 do not belong to it (more.weight …)" in message(state | {"net.more.weight": torch.ones(2)})
    averages = {f"ema.{name}": value for name, value in wanted.items()}
    assert "holds the network 2 times, under 'net.' and 'ema.'" in message(state | averages)
    assert "several sets of weights (model, ema)" in message({"model": wanted, "ema": wanted})


def test_what_is_no_network_is_named(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(network.parameters()).state_dict()
    adapter = {f"base_model.model.{FIRST}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    for content, words in (
        (optimiser, "the state of an optimiser"),
        ({"optimizer": optimiser, "epoch": 3}, "the state of an optimiser"),
        (adapter, "a LoRA adapter, not whole weights; merge it"),
        ({"a\x1b[2J": torch.ones(2)}, r"names a tensor 'a\x1b[2J'"),
    ):
        published.save(content, tmp_path / "thinksound_light.ckpt")
        assert words in refused(tmp_path, "thinksound_light")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    message = changed(tmp_path, lambda tensors: tensors[FIRST].view(-1)[5:6].fill_(value))
    assert "thinksound_light.ckpt: audio_input_proj.0.bias holds NaN or infinite numbers" in message


def test_numbers_too_large_for_a_number_format_are_refused_for_that_one(tmp_path: Path) -> None:
    tensors = published.mmdit_tensors()
    tensors[FIRST][5] = 1e5
    published.save(tensors, tmp_path / "thinksound_light.ckpt")
    for _ in range(2):  # also once the file is known to be finite
        with pytest.raises(WeightsError, match=r"0\.bias holds numbers too large for float16"):
            load_network(tmp_path, "thinksound_light", torch.float16)
        load_network(tmp_path, "thinksound_light", torch.bfloat16)


def test_that_numbers_are_finite_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae")
    checksums.verify(folder)  # knows the hash alone
    load_network(folder, "vae")
    assert checksums.are_finite(folder, [folder / "vae.ckpt"])
    tensors = published.vae_tensors()
    next(iter(tensors.values())).fill_(float("nan"))
    published.save({"state_dict": tensors}, folder / "vae.ckpt")
    checksums.verify(folder, accept=True)
    with pytest.raises(WeightsError, match="NaN"):
        load_network(folder, "vae")


def test_weights_of_another_size_name_both_sizes(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "thinksound_light")
    with pytest.raises(
        WeightsError, match=r"of another size: .* is \(.*\), MMDiT has \(.*1024.*choose the preset"
    ):
        load_as(MMDiT, MMDiTConfig(), folder, "thinksound_light", torch.float32)


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
def test_another_networks_file_is_recognised(tmp_path: Path, key: str, given: str, words: str) -> None:
    shutil.copyfile(published.originals() / weight_file(given).path, tmp_path / weight_file(key).path)
    assert f"it looks like {'weights of the ' if words[0].islower() else ''}{words}" in refused(tmp_path, key)


def test_the_weights_of_the_other_text_encoder_are_recognised(tmp_path: Path) -> None:
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
def test_a_truncated_file_is_named(tmp_path: Path, key: str) -> None:
    folder = published.copies(tmp_path, key)
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


def test_a_folder_without_one_of_its_parts_says_which(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "t5") / "t5-v1_1-xl"
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


# --- configuration and tokenizer ---------------------------------------------------------------------

T5, CLIP = "t5-v1_1-xl", "metaclip-h14-fullcc2.5b"
NO_JSON = (
    b"",
    b"[]",
    b"3",
    b'{"a": NaN}',
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b"\xff\xfe{\0}\0",
    b"1" * 6000,
)


def config_with(folder: Path, **changes: object) -> bytes:
    return json.dumps(json.loads((folder / "config.json").read_text()) | changes).encode()


def test_damaged_configuration_and_tokenizer_files_are_named(tmp_path: Path) -> None:
    for key, name in (("t5", T5), ("metaclip", CLIP)):
        folder = published.copies(tmp_path, key)
        for path in sorted((folder / name).glob("*")):
            if path.suffix in (".bin", ".safetensors") or path.name == "preprocessor_config.json":
                continue  # weights, and what only the evaluation's networks need
            good = path.read_bytes()
            broken = (b"", b"\xff" * 500, good[: len(good) // 2])
            contents: tuple[bytes, ...] = NO_JSON if path.suffix == ".json" else broken
            if path.name in ("vocab.json", "merges.txt"):
                contents = () if path.suffix == ".txt" else NO_JSON  # tokenizer.json is used instead
            for content in contents:
                path.write_bytes(content)
                assert f"{folder / name}" in refused(folder, key)
            path.write_bytes(good)
        load_network(folder, key)
        (folder / checksums.TABLE).unlink()


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 10**9},
        {"num_layers": 10**6},
        {"vocab_size": 10**30},
        {"d_kv": "64"},
        {"d_ff": None},
        {"num_heads": 0},
        {"feed_forward_proj": "nonsense", "dense_act_fn": "nonsense"},
        {"layer_norm_epsilon": []},
        {"model_type": ["t5"]},
        {"model_type": "x" * 5000},
    ],
)
def test_a_configuration_of_no_possible_network_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = published.copies(tmp_path, "t5")
    (folder / T5 / "config.json").write_bytes(config_with(folder / T5, **changes))
    message = refused(folder, "t5")
    assert f"{folder / T5}" in message and len(message) < 500


def test_a_picture_size_beyond_memory_is_refused(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "metaclip")
    content = {"image_size": 1 << 20, "patch_size": 1}
    (folder / CLIP / "config.json").write_bytes(config_with(folder / CLIP, vision_config=content))
    assert "config.json: not a network description (image_size is 1.05e+06" in refused(folder, "metaclip")


def test_a_changed_configuration_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "t5")
    load_network(folder, "t5")
    for name in ("config.json", "tokenizer_config.json", "spiece.model"):
        good = (folder / T5 / name).read_bytes()
        overwrite(folder / T5 / name, b"{")
        with pytest.raises(WeightsError, match=f"{name}: changed since first use"):
            load_network(folder, "t5")
        overwrite(folder / T5 / name, good)


def test_a_folder_that_names_code_runs_none(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "metaclip")
    code = {
        "auto_map": {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]},
        "trust_remote_code": True,
    }
    (folder / CLIP / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w'); C = T = dict")
    for name in ("config.json", "tokenizer_config.json"):
        described = json.loads((folder / CLIP / name).read_text())
        (folder / CLIP / name).write_text(json.dumps(described | code))
    load_network(folder, "metaclip")
    assert not (tmp_path / "run").exists()


# --- the folder ----------------------------------------------------------------------------------------


def test_the_weights_folder_is_chosen_by_the_environment_or_is_the_checkouts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("THINKSOUND_WEIGHTS", str(tmp_path / "mine"))
    assert default_weights_dir() == tmp_path / "mine"
    monkeypatch.delenv("THINKSOUND_WEIGHTS")
    assert default_weights_dir() == paths.WEIGHTS


def test_the_folder_readme_names_every_published_file_and_its_licence() -> None:
    text = (paths.WEIGHTS / "README.md").read_text()
    for file in WEIGHTS.values():
        if not file.bundled:
            start = f"| `{file.path}{'/' if file.is_folder else ''}` |"
            (row,) = [line for line in text.splitlines() if line.startswith(start)]
            assert file.licence in row and file.size is not None
            assert f"{file.size / 1e9:.2f} GB" in row
            assert str(file.repository) in row
