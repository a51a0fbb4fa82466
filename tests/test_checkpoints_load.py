"""Published files into networks: strictly, bit for bit, from the right file, in the right dtype."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import published
import pytest
import torch
from published import KEYS, assert_holds, load_network, tensors_of
from torch import Tensor

from thinksound.checkpoints import checksums
from thinksound.checkpoints.load import load_mmdit, load_t5, locate
from thinksound.checkpoints.locate import missing
from thinksound.checkpoints.registry import WEIGHTS, default_weights_dir, weight_file
from thinksound.config import MMDiTConfig
from thinksound.errors import WeightsError

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
    model = load_t5(published.copies(tmp_path, "t5"), "t5", torch.bfloat16).model
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


def test_weights_of_another_size_name_both_sizes(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "thinksound_light")
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
