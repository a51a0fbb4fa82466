"""MMAudio at small sizes: its weight files in the formats that are published, with seeded values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from support.dfn5b_folder import write_dfn5b
from support.mmaudio_reference import FOLDER, seeded_tensors, shapes_of
from torch import Tensor, nn

from thinksound.checkpoints.load import load_network, network_of
from thinksound.checkpoints.registry import weight_file
from thinksound.families.mmaudio import SIZES, MMAudioFamily, Sizes
from thinksound.pipeline import Pipeline
from thinksound.presets import PRESETS
from thinksound.runtime.placement import Machine, Placement, make_plan

Spelling = Literal["older", "newer"]

# Of weight norm, as PyTorch has named its tensors.
_SPELLINGS = {
    "older": ("weight_g", "weight_v"),
    "newer": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}


def _golden_size(size: str) -> Sizes:
    """A published size with the narrow networks that the golden files were made with."""
    published = SIZES[size]
    return Sizes(
        replace(published.flow, hidden_dim=64, num_heads=4, depth=4, fused_depth=2),
        published.mel,
        replace(published.vae, channels=32),
        replace(published.vocoder, channels=128),
        SIZES["tiny"].synchformer,
    )


def golden_family(kind: str) -> MMAudioFamily:
    """The family of a golden file: ``v1_16k``, ``v1_44k`` or ``v2_44k``."""
    size = {"v1_16k": "small-16k", "v1_44k": "large-44k", "v2_44k": "large-44k-v2"}[kind]
    return MMAudioFamily(PRESETS[f"mmaudio-{size}"], _golden_size(size))


def small_family() -> MMAudioFamily:
    """All networks small and fitting each other, loaded from the files of ``mmaudio-small-16k``."""
    return MMAudioFamily(PRESETS["mmaudio-small-16k"], replace(SIZES["tiny"], clip=None))


def _published_shapes(network: nn.Module, spelling: Spelling | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the file of a network; with weight norm and filters where a spelling is given."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes_of(network.state_dict()).items():
        stem = name.removesuffix("weight")
        if spelling is None or stem == name:
            shapes[name] = shape
        else:
            gain, direction = _SPELLINGS[spelling]
            shapes |= {stem + gain: (shape[0], 1, 1), stem + direction: shape}
        if spelling is not None and name.endswith(".act.alpha"):
            activation = name.removesuffix("act.alpha")
            shapes |= dict.fromkeys(
                (f"{activation}upsample.filter", f"{activation}downsample.lowpass.filter"), (1, 1, 12)
            )
    return shapes


def vocoder_tensors(family: MMAudioFamily, spelling: Spelling = "older") -> dict[str, Tensor]:
    """What the vocoder's file holds; equal numbers in both spellings."""
    network = family.build("vocoder", Path())
    older = seeded_tensors(_published_shapes(network_of(network), "older"))
    names = dict(zip(older, _published_shapes(network_of(network), spelling), strict=True))
    return {names[name]: older[name] for name in older}


def tensors_of(family: MMAudioFamily, name: str) -> dict[str, Tensor]:
    """What the published file of one network holds, without wrappers and stale buffers."""
    if name == "vocoder":
        return vocoder_tensors(family)
    return dict(seeded_tensors(shapes_of(network_of(family.build(name, Path())).state_dict())))


def stale_buffers(family: MMAudioFamily) -> dict[str, Tensor]:
    """The tables that files of version 1 hold and the network computes; their values must not matter."""
    size = family.preset.size.replace("-", "_")
    about = json.loads((FOLDER / "manifest" / f"mmaudio_{size}.pth.json").read_text())
    return {name: torch.full(shape, float("nan")) for name, shape in about["stale_buffers_in_file"].items()}


def write_network(folder: Path, family: MMAudioFamily, name: str) -> Path:
    """Write the file, or folder, of one network as its authors publish it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / weight_file(family.preset.weights[name]).path
    if name == "clip":
        config = SIZES["tiny"].clip
        assert config is not None
        return write_dfn5b(path, dict(config), torch.float32, pickled=True)
    tensors = tensors_of(family, name)
    if name == "dit":
        tensors |= stale_buffers(family)
    if name == "synchformer":
        tensors |= {
            "afeat_extractor.ast.weight": torch.ones(3, 3),
            "transformer.OFF_tok": torch.ones(1, 1, 8),
        }
    content: Mapping[str, object] = {"generator": tensors} if name == "vocoder" else tensors
    torch.save(content, path)
    return path


def write_published(folder: Path, family: MMAudioFamily) -> Path:
    """A weights folder with every file of the family's preset."""
    for name in family.preset.networks:
        write_network(folder, family, name)
    return folder


def load_one(
    weights: Path, family: MMAudioFamily, name: str, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """One network from a weights folder."""
    key = family.preset.weights[name]
    return network_of(load_network(partial(family.build, name), weights, key, dtype, family.fold(name)))


def load_pipeline(weights: Path, family: MMAudioFamily) -> Pipeline:
    """As `thinksound.load` does it on a CPU in float32, at the family's sizes."""
    preset = family.preset
    placement = Placement(make_plan(Machine(), preset.networks, "cpu", "float32", False))
    built = {}
    for name, network in preset.networks.items():
        built[name] = load_network(
            partial(family.build, name), weights, network.key, torch.float32, family.fold(name)
        )
        placement.place(name, family.placed(name, built[name]))
    return Pipeline(preset, family.assemble(built), placement)
