"""Finds the family of a preset, and the contents of its weight files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from torch import nn

from ..checkpoints.convert import Contents
from ..checkpoints.load import Encoder, network_of
from ..checkpoints.registry import bundled_dir, weight_file
from ..presets import PRESETS, TINY, Preset
from .protocol import Family


def family_of(preset: Preset) -> Family:
    """Returns the family of a preset at the preset's sizes; imports only that family's networks."""
    module = import_module(f"{__package__}.{preset.family}")
    return cast(Family, module.family(preset))


def contents_of(key: str, path: Path) -> Contents:
    """Returns what a network needs from the file of ``key`` at ``path``; empty if no preset uses the key."""
    for preset in PRESETS.values():
        for name, network in preset.networks.items():
            if network.key == key:
                family = family_of(preset)
                built = network_of(family.build(name, path))
                return Contents(built.state_dict().keys(), family.fold(name))
    return Contents()


def published_network(family: Family, name: str) -> nn.Module | Encoder:
    """Build a network of the published size on ``meta`` without its files, for measurements.

    MetaCLIP and T5 get the tokenizers of the tiny preset, whose token ids all vocabularies have.
    """
    file = weight_file(family.preset.weights[name])
    if not file.is_folder or file.bundled:
        return family.build(name, bundled_dir() / file.path)
    tiny = bundled_dir() / TINY.name
    if file.key == "t5":
        t5 = import_module("..encoders.t5", __package__)
        text = t5.build_t5(tiny / "t5")
        text.model = t5.build_network(t5.PUBLISHED_CONFIG)
        return cast(Encoder, text)
    if file.key == "dfn5b":
        dfn5b = import_module("..encoders.dfn5b", __package__)
        return cast(
            Encoder, dfn5b.DFN5B(dfn5b.build_network(dict(dfn5b.PUBLISHED_CONFIG)), dfn5b.Tokenizer())
        )
    metaclip = import_module("..encoders.metaclip", __package__)
    clip = metaclip.build_metaclip(tiny / "metaclip")
    clip.model = metaclip.build_network(metaclip.PUBLISHED_CONFIG)
    return cast(Encoder, clip)
