"""MMAudio's published files into networks, converted, downloaded, and refused where they are others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import published_mmaudio as published
from support.hub_server import Hub
from support.mmaudio_reference import FOLDER, manifest, seeded_tensors, shapes_of
from support.paths import ROOT
from support.published_mmaudio import load_one, small_family, tensors_of, write_network
from torch import Tensor

from thinksound.checkpoints import checksums
from thinksound.checkpoints.convert import Contents, convert
from thinksound.checkpoints.load import fill, locate, network_of
from thinksound.checkpoints.locate import describe_missing, missing
from thinksound.checkpoints.registry import weight_file
from thinksound.checkpoints.untrained import drawn_tensors
from thinksound.encoders.dfn5b import build_network
from thinksound.errors import WeightsError
from thinksound.families.find import contents_of, family_of
from thinksound.families.mmaudio import SIZES
from thinksound.models import bigvgan, mel_vae
from thinksound.presets import MMAUDIO, MMAUDIO_TINY, PRESETS

FAMILY = small_family()
FOLDED = {"vae": mel_vae.network_tensors, "vocoder": bigvgan.network_tensors}
NETWORKS = ("clip", "synchformer", "dit", "vae", "vocoder")
# The published file of each key, and a preset that reads it.
FILES = {
    network.key: (Path(weight_file(network.key).path).name, preset.name, name)
    for preset in MMAUDIO
    for name, network in preset.networks.items()
    if name != "synchformer"
}
MANIFEST = {"DFN5B-CLIP-ViT-H-14-378": "open_clip_pytorch_model.bin"}


def wanted(name: str) -> dict[str, Tensor]:
    """What a network holds once it is loaded from the files of `published_mmaudio`."""
    if name == "clip":
        config = SIZES["tiny"].clip
        assert config is not None
        return dict(seeded_tensors(shapes_of(build_network(dict(config)).state_dict())))
    tensors: Mapping[str, Tensor] = tensors_of(FAMILY, name)
    return {key: value.clone() for key, value in FOLDED.get(name, lambda given: given)(tensors).items()}


def assert_holds(network: torch.nn.Module, values: Mapping[str, Tensor], dtype: torch.dtype = torch.float32):
    held = network.state_dict()
    assert set(held) == set(values)
    for name, value in values.items():
        assert held[name].dtype == dtype
        assert torch.equal(held[name], value.to(dtype)), name


# --- the published files -----------------------------------------------------------------------------


def test_ten_files_and_synchformers_serve_the_five_presets() -> None:
    assert len(MMAUDIO) == 5 and len(FILES) == 10
    assert {MANIFEST.get(file, file) for file, _, _ in FILES.values()} == {
        path.name.removesuffix(".json") for path in (FOLDER / "manifest").glob("*.json")
    }
    assert {preset.networks["synchformer"].key for preset in MMAUDIO} == {"synchformer"}


@pytest.mark.parametrize("key", FILES)
def test_the_network_has_the_tensors_of_its_published_file(key: str, tmp_path: Path) -> None:
    file, preset, name = FILES[key]
    about = json.loads((FOLDER / "manifest" / f"{MANIFEST.get(file, file)}.json").read_text())
    family = family_of(PRESETS[preset])
    if name == "clip":
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": about["config"]}))
    network = network_of(family.build(name, tmp_path))
    entry = weight_file(key)
    held = {
        tensor: torch.empty(shape, device="meta")
        for tensor, shape in manifest(MANIFEST.get(file, file)).items()
    }
    stale = {name: torch.empty(shape) for name, shape in about.get("stale_buffers_in_file", {}).items()}
    # Behind the wrapper of the vocoders' files, which reading takes off.
    kept = {tensor: value for tensor, value in (held | stale).items() if not entry.ignores(tensor)}
    assert set(stale) == (held | stale).keys() - kept.keys()  # these, and nothing else
    fold = family.fold(name)
    tensors = kept if fold is None else fold(kept)
    assert shapes_of(tensors) == shapes_of(network.state_dict())
    dropped = {
        tensor for tensor in held if tensor not in tensors and not tensor.endswith(("weight_g", "weight_v"))
    }
    assert all(tensor.endswith(".filter") for tensor in dropped)
    assert len(dropped) == (218 if name == "vocoder" else 0)
    needed = contents_of(key, tmp_path)  # what conversion goes by
    assert set(needed.names) == set(network.state_dict())
    assert (needed.fold, needed.fold is None) == (fold, name not in FOLDED)
    # What the plan of devices counts: of the VAE, generation runs the decoder alone.
    placed = family.placed(name, family.build(name, tmp_path))
    counted = sum(parameter.numel() for parameter in placed.parameters())
    assert PRESETS[preset].networks[name].parameters == counted


@pytest.mark.parametrize("name", NETWORKS)
def test_every_published_file_loads_bit_for_bit_and_is_folded_once(tmp_path: Path, name: str) -> None:
    write_network(tmp_path, FAMILY, name)
    network = load_one(tmp_path, FAMILY, name)
    assert_holds(network, wanted(name))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_stale_buffers_are_no_part_of_version_2_and_ignored_in_version_1(tmp_path: Path) -> None:
    path = write_network(tmp_path, FAMILY, "dit")
    names = set(torch.load(path, weights_only=True))
    assert {"t_embed.freqs", "latent_rot", "clip_rot"} < names
    torch.save({name: value for name, value in torch.load(path).items() if "_rot" not in name}, path)
    assert_holds(load_one(tmp_path, FAMILY, "dit"), wanted("dit"))
    torch.save(torch.load(path) | {"another_rot": torch.ones(3)}, path)
    (tmp_path / checksums.TABLE).unlink()
    with pytest.raises(WeightsError, match=r"1 do not belong to it \(another_rot …\)"):
        load_one(tmp_path, FAMILY, "dit")


@pytest.mark.parametrize("wrapper", ["generator", None])
@pytest.mark.parametrize("spelling", ["older", "newer", "folded"])
def test_a_vocoder_in_every_spelling_of_weight_norm(
    tmp_path: Path, spelling: Any, wrapper: str | None
) -> None:
    tensors: Mapping[str, Tensor] = wanted("vocoder")
    if spelling != "folded":
        tensors = published.vocoder_tensors(FAMILY, spelling)
    content: object = {wrapper: OrderedDict(tensors)} if wrapper else dict(tensors)
    torch.save(content, tmp_path / "best_netG.pt")
    assert_holds(load_one(tmp_path, FAMILY, "vocoder"), wanted("vocoder"))


@pytest.mark.parametrize("layout", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_both_forms_of_the_folder_of_clip(tmp_path: Path, layout: str) -> None:
    folder = write_network(tmp_path, FAMILY, "clip")
    if layout.endswith(".safetensors"):
        tensors = torch.load(folder / "open_clip_pytorch_model.bin")
        save_file({name: value.clone() for name, value in tensors.items()}, folder / layout)
        (folder / "open_clip_pytorch_model.bin").write_bytes(b"not looked at")
    assert_holds(load_one(tmp_path, FAMILY, "clip"), wanted("clip"))
    assert_holds(load_one(tmp_path, FAMILY, "clip", torch.bfloat16), wanted("clip"), torch.bfloat16)


def test_random_values_are_those_of_their_names_on_every_machine() -> None:
    family = family_of(MMAUDIO_TINY)
    for name, network in MMAUDIO_TINY.networks.items():
        built = family.build(name, Path())
        parts = network_of(built)
        drawn = drawn_tensors(network.key, parts.state_dict())
        assert sum(value.numel() for value in family.placed(name, built).parameters()) == network.parameters
        fill(parts, drawn, Path(name), torch.float32)
    assert network.key == "mmaudio_tiny_vocoder"
    assert drawn["conv_pre.bias"][:3].tolist() == pytest.approx(DRAWN)


DRAWN = [0.03020777367055416, 0.013696539215743542, 0.039502114057540894]


# --- conversion --------------------------------------------------------------------------------------


def contents(key: str, path: Path) -> Contents:
    name = next(name for name, network in FAMILY.preset.networks.items() if network.key == key)
    return Contents(network_of(FAMILY.build(name, path)).state_dict().keys(), FAMILY.fold(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_file_holds_the_networks_own_values(tmp_path: Path, name: str) -> None:
    original = write_network(tmp_path, FAMILY, name)
    key = FAMILY.preset.weights[name]
    for _ in range(2):  # again, beside the copy
        (row,) = convert(tmp_path, [key], {}, contents)
    path = row.path / "open_clip_model.safetensors" if row.path.is_dir() else row.path
    assert set(load_file(path)) == set(wanted(name))
    with safe_open(path, "pt") as file:
        assert file.metadata()["names"] == "network"
    assert row.size < row.source_size
    assert locate(tmp_path, key, torch.float32) == row.path
    assert_holds(load_one(tmp_path, FAMILY, name), wanted(name))
    shutil.rmtree(original) if original.is_dir() else original.unlink()
    assert missing(tmp_path, [key]) == []
    assert_holds(load_one(tmp_path, FAMILY, name), wanted(name))


@pytest.mark.parametrize("name", ["dit", "clip"])
def test_conversion_to_bfloat16_halves_the_file(tmp_path: Path, name: str) -> None:
    write_network(tmp_path, FAMILY, name)
    (row,) = convert(
        tmp_path,
        [FAMILY.preset.weights[name]],
        dict.fromkeys(FAMILY.preset.weights.values(), torch.bfloat16),
        contents,
    )
    assert 0.45 < row.size / row.source_size < 0.55
    assert_holds(load_one(tmp_path, FAMILY, name, torch.bfloat16), wanted(name), torch.bfloat16)


@pytest.mark.slow
def test_a_folder_of_published_files_and_its_converted_copies_make_the_same_sound(
    tmp_path: Path, clips: Path
) -> None:
    def sound() -> Tensor:
        pipeline = published.load_pipeline(tmp_path, FAMILY)
        result = pipeline(clips / "cfr30_0p3s.mp4", "rain", seed=1, num_inference_steps=2)
        assert result.waveform.isfinite().all() and result.waveform.std() > 1e-3
        return result.waveform

    published.write_published(tmp_path, FAMILY)
    first = sound()
    rows = convert(tmp_path, FAMILY.preset.weights.values(), {}, contents)
    for path in tmp_path.iterdir():
        if path.name != "converted":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(rows) == 5 and torch.equal(sound(), first)


def test_random_weights_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="mmaudio_tiny_dit: drawn when it is loaded, there is no file"):
        convert(tmp_path, ["mmaudio_tiny_dit"], {})


# --- what is missing, and what is another file ---------------------------------------------------------


def test_missing_files_are_listed_with_their_repository(tmp_path: Path) -> None:
    keys = PRESETS["mmaudio-large-44k-v2"].weights.values()
    message = describe_missing(tmp_path, missing(tmp_path, keys))
    folder, synchformer, transformer, vae, vocoder = message.splitlines()[1:6]
    where = " on the Hugging Face hub"
    assert folder == (
        "  DFN5B-CLIP-ViT-H-14-378/: open_clip_config.json, open_clip_model.safetensors or "
        f"open_clip_pytorch_model.bin, from apple/DFN5B-CLIP-ViT-H-14-378{where}"
    )
    assert synchformer == f"  synchformer_state_dict.pth, from FunAudioLLM/ThinkSound{where}"
    assert transformer == f"  mmaudio_large_44k_v2.pth, from hkchengrex/MMAudio{where}"
    assert vae == f"  v1-44.pth, from hkchengrex/MMAudio{where}"
    assert vocoder == f"  bigvgan_generator.pt, from nvidia/bigvgan_v2_44khz_128band_512x{where}"
    assert missing(tmp_path, MMAUDIO_TINY.weights.values()) == []


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("dit", "vae", "holds nothing of MMAudioFlow, it looks like weights of MMAudio's mel VAE"),
        ("dit", "vocoder", "holds nothing of MMAudioFlow, it looks like weights of the vocoder BigVGAN"),
        ("vae", "dit", "holds nothing of MelVAE, it looks like weights of the diffusion transformer"),
        ("vae", "vocoder", "holds nothing of MelVAE, it looks like weights of the vocoder BigVGAN"),
        ("vocoder", "vae", "holds nothing of BigVGAN, it looks like weights of MMAudio's mel VAE"),
        ("vocoder", "synchformer", "holds nothing of BigVGAN, it looks like Synchformer weights"),
        ("synchformer", "dit", "holds nothing of Synchformer, it looks like weights of the diffusion"),
    ],
)
def test_the_file_of_another_network_is_named(tmp_path: Path, name: str, given: str, words: str) -> None:
    path = tmp_path / weight_file(FAMILY.preset.weights[name]).path
    write_network(tmp_path / "given", FAMILY, given).rename(path)
    with pytest.raises(WeightsError) as error:
        load_one(tmp_path, FAMILY, name)
    assert str(path) in str(error.value) and words in str(error.value)


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    write_network(tmp_path, published.golden_family("v1_16k"), "dit")
    with pytest.raises(WeightsError, match=r"of another size: .* choose the preset that these weights"):
        load_one(tmp_path, FAMILY, "dit")
    path = write_network(tmp_path, FAMILY, "vocoder")
    tensors = torch.load(path)["generator"]
    del tensors["conv_pre.weight_g"]
    torch.save({"generator": tensors}, path)
    with pytest.raises(WeightsError, match=r"not the weights of this BigVGAN: 1 of \d+ tensors are missing"):
        load_one(tmp_path, FAMILY, "vocoder")


def test_files_that_are_cut_short_or_none(tmp_path: Path) -> None:
    for name in ("dit", "vae", "vocoder"):
        path = write_network(tmp_path, FAMILY, name)
        for content in (path.read_bytes()[:5000], b"", b"<!DOCTYPE html><html></html>", b"{}"):
            path.write_bytes(content)
            with pytest.raises(WeightsError, match=path.name):
                load_one(tmp_path, FAMILY, name)


# --- the hub -------------------------------------------------------------------------------------------

MMAUDIO_FILES = {
    "README.md": b"card",
    "weights/mmaudio_small_16k.pth": b"small",
    "weights/mmaudio_large_44k_v2.pth": b"large",
    "ext_weights/v1-16.pth": b"vae 16",
    "ext_weights/v1-44.pth": b"vae 44",
    "ext_weights/best_netG.pt": b"vocoder",
    "ext_weights/synchformer_state_dict.pth": b"another copy",
}
CLIP_FILES = {
    name: name.encode()
    for name in (
        *("open_clip_config.json", "open_clip_pytorch_model.bin", "README.md"),
        *("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.json"),
    )
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "vae", "vocoder"),
    [
        ("mmaudio-small-16k", "v1-16.pth", "best_netG.pt"),
        ("mmaudio-large-44k-v2", "v1-44.pth", "bigvgan_generator.pt"),
    ],
)
def test_files_are_fetched_from_their_folders_on_the_hub(
    tmp_path: Path, preset: str, vae: str, vocoder: str
) -> None:
    transformer = f"{preset.replace('-', '_')}.pth"
    bigvgan = {"bigvgan_generator.pt": b"v2", "bigvgan_generator_3msteps.pt": b"older", "config.json": b"{}"}
    files = {
        "hkchengrex/MMAudio": MMAUDIO_FILES,
        "apple/DFN5B-CLIP-ViT-H-14-378": CLIP_FILES,
        "FunAudioLLM/ThinkSound": {"synchformer_state_dict.pth": b"synchformer"},
        "nvidia/bigvgan_v2_44khz_128band_512x": bigvgan,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with Hub(files) as hub:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "thinksound",
                "weights",
                "download",
                "-q",
                "--preset",
                preset,
                "--weights",
                str(tmp_path / "weights"),
            ],
            env=inherited | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf_home")},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    written = {
        str(path.relative_to(tmp_path / "weights")): path.read_bytes()
        for path in (tmp_path / "weights").rglob("*")
        if path.is_file() and path.name != checksums.TABLE
    }
    assert written == {
        transformer: MMAUDIO_FILES[f"weights/{transformer}"],
        vae: MMAUDIO_FILES[f"ext_weights/{vae}"],
        vocoder: {**MMAUDIO_FILES, **bigvgan}.get(f"ext_weights/{vocoder}", b"v2"),
        "synchformer_state_dict.pth": b"synchformer",
        **{
            f"DFN5B-CLIP-ViT-H-14-378/{name}": CLIP_FILES[name]
            for name in ("open_clip_config.json", "open_clip_pytorch_model.bin")
        },
    }
