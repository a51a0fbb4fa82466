"""Weight files in their published formats, at a small size with seeded values."""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import shutil
import sys
import tempfile
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from parity.procedural import fill
from safetensors.torch import save_file
from support.networks import load_as
from support.paths import PARITY
from support.reference import SMALL_MMDIT, SMALL_SYNCHFORMER, SMALL_VAE
from torch import Tensor, nn

from thinksound.checkpoints import load
from thinksound.checkpoints.registry import weight_file
from thinksound.encoders.metaclip import build_metaclip
from thinksound.encoders.t5 import T5Text, build_t5
from thinksound.models.mmdit import MMDiT
from thinksound.models.oobleck import AudioVAE
from thinksound.models.synchformer import Synchformer

TEXT = PARITY / "features" / "text"

KEYS = ("thinksound_light", "thinksound", "vae", "synchformer", "metaclip", "t5")

Layout = Literal["model.safetensors", "sharded safetensors", "pytorch_model.bin", "legacy bin", "sharded bin"]


def seeded(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(fill(name, shape)) for name, shape in shapes.items()}


def _of(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    return seeded({prefix + name: tuple(value.shape) for name, value in network.state_dict().items()})


def mmdit_tensors() -> dict[str, Tensor]:
    """Tensors as in thinksound_light.ckpt, with tables from older files and a part of its copy of the VAE."""
    with torch.device("meta"):
        network = MMDiT(SMALL_MMDIT)
    computed = {f"model.model.{name}": torch.ones(4) for name in ("t_embed.freqs", "latent_rot", "clip_rot")}
    copy = {"pretransform.model.encoder.layers.0.weight_g": torch.ones(8, 1, 1)}
    return _of(network, "model.model.") | computed | copy


def vae_tensors() -> dict[str, Tensor]:
    """Tensors as in the used part of vae.ckpt."""
    with torch.device("meta"):
        network = AudioVAE(SMALL_VAE)
    return _of(network, "autoencoder.")


def synchformer_tensors() -> dict[str, Tensor]:
    """Tensors as in synchformer_state_dict.pth, with a few of the audio tower and the head."""
    with torch.device("meta"):
        network = Synchformer(SMALL_SYNCHFORMER)
    foreign = {"afeat_extractor.ast.weight": (3, 3), "transformer.OFF_tok": (1, 1, 8), "vproj.weight": (4, 4)}
    return _of(network, "") | seeded(foreign)


def metaclip_tensors() -> dict[str, Tensor]:
    shapes = json.loads((TEXT / "manifest_clip_tiny.json").read_text())
    return seeded({name: tuple(shape) for name, shape in shapes.items()})


def t5_tensors() -> dict[str, Tensor]:
    """Tensors as in the published file: encoder and some of the decoder, the embedding under three names."""
    shapes = {
        name: tuple(shape) for name, shape in json.loads((TEXT / "manifest_t5_tiny.json").read_text()).items()
    }
    decoder = {"decoder.block.0.layer.0.SelfAttention.q.weight": (64, 64), "lm_head.weight": (640, 64)}
    tensors = seeded(shapes | decoder)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"]
    return tensors


def trainer_checkpoint(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, object]:
    """Build a trainer's checkpoint: a state dict with counters, settings, callbacks and optimiser state."""
    module = types.ModuleType("trainer_of_long_ago")
    exec("class Settings: pass\nclass Checkpoint(dict): pass", vars(module))
    sys.modules["trainer_of_long_ago"] = module  # see `save`
    average = {f"{prefix.rstrip('.')}_ema.ema_model.{name}": value + 1 for name, value in state.items()}
    return {
        "epoch": 3,
        "global_step": 1000,
        "state_dict": OrderedDict({prefix + name: value for name, value in state.items()} | average),
        "callbacks": {"ModelCheckpoint": module.Checkpoint(best=module.Settings())},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}],
        "hyper_parameters": argparse.Namespace(settings=module.Settings(), folder=Path("/data")),
    }


def save(content: object, path: Path) -> None:
    """Write a checkpoint, and remove the module that defines the classes of its foreign objects."""
    torch.save(content, path)
    sys.modules.pop("trainer_of_long_ago", None)


@functools.cache
def originals() -> Path:
    """Return a folder with every published file, written once; tests must not change it."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    weights = Path(folder.name)
    save(mmdit_tensors(), weights / "thinksound_light.ckpt")
    save(trainer_checkpoint(mmdit_tensors(), "diffusion."), weights / "thinksound.ckpt")
    discriminator = {
        "discriminator.discriminators.0.weight": torch.ones(3),
        "autoencoder_ema.step": torch.tensor(5),
    }
    vae = trainer_checkpoint(vae_tensors() | discriminator)
    save(vae, weights / "vae.ckpt")
    save(synchformer_tensors(), weights / "synchformer_state_dict.pth")
    write_folder(weights / "metaclip-h14-fullcc2.5b", "clip_tiny", metaclip_tensors(), "model.safetensors")
    write_folder(weights / "t5-v1_1-xl", "t5_tiny", t5_tensors(), "pytorch_model.bin")
    return weights


def copies(folder: Path, *keys: str) -> Path:
    """Make a weights folder below ``folder`` with copies of the published files of ``keys``."""
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    for key in keys:
        source = originals() / weight_file(key).path
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, weights / source.name)
    return weights


def load_network(weights: Path, key: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load the network of any published key."""
    if key == "metaclip":
        return load.load_network(build_metaclip, weights, key, dtype).model
    if key == "t5":
        return load_t5(weights, dtype).model
    kind, config = SMALL.get(key, (MMDiT, SMALL_MMDIT))
    network: nn.Module = load_as(kind, config, weights, key, dtype)
    return network


SMALL: dict[str, tuple[type[nn.Module], object]] = {
    "vae": (AudioVAE, SMALL_VAE),
    "synchformer": (Synchformer, SMALL_SYNCHFORMER),
}


def load_t5(weights: Path, dtype: torch.dtype = torch.float32) -> T5Text:
    """Load T5 with its tokenizer."""
    return load.load_network(build_t5, weights, "t5", dtype)


def tensors_of(key: str) -> dict[str, Tensor]:
    """Return the tensors that the network of ``key`` should hold, by its own names."""
    if key == "vae":
        return {n.removeprefix("autoencoder."): t for n, t in vae_tensors().items()}
    if key == "synchformer":
        return {n: t for n, t in synchformer_tensors().items() if n.startswith("vfeat_extractor.")}
    if key == "metaclip":
        return metaclip_tensors()
    if key == "t5":
        return {n: t for n, t in t5_tensors().items() if not n.startswith(("decoder.", "lm_head."))}
    prefix = "model.model."
    inner = {n.removeprefix(prefix): t for n, t in mmdit_tensors().items() if n.startswith(prefix)}
    return {n: t for n, t in inner.items() if n not in ("t_embed.freqs", "latent_rot", "clip_rot")}


def assert_holds(network: nn.Module, wanted: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Check that the network holds exactly these tensors, cast to ``dtype``, bit for bit."""
    held = network.state_dict()
    assert set(held) == set(wanted)
    for name, tensor in wanted.items():
        assert held[name].dtype == dtype
        assert torch.equal(held[name], tensor.to(dtype)), name


def overwrite(path: Path, content: bytes) -> None:
    """Write a file with another modification time, whatever the clock's resolution is."""
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))


def write_folder(folder: Path, description: str, tensors: dict[str, Tensor], layout: Layout) -> None:
    """Write a Hugging Face folder: configuration and tokenizer of the references, weights in ``layout``."""
    shutil.copytree(TEXT / description, folder, dirs_exist_ok=True)
    if layout == "model.safetensors":
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / layout)
    elif layout == "pytorch_model.bin":
        torch.save(OrderedDict(tensors), folder / layout)
    elif layout == "legacy bin":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        stem, suffix = (
            ("model", "safetensors") if layout == "sharded safetensors" else ("pytorch_model", "bin")
        )
        names = sorted(tensors)
        shards = {
            f"{stem}-{number + 1:05d}-of-00003.{suffix}": {
                name: tensors[name].clone() for name in names[number::3]
            }
            for number in range(3)
        }
        for shard, part in shards.items():
            (save_file if suffix == "safetensors" else torch.save)(part, folder / shard)
        index = {name: shard for shard, part in shards.items() for name in part}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
