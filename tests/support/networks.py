"""Loads networks of a preset, or of any size, from a weights folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thinksound.checkpoints.load import load_network
from thinksound.families.find import family_of
from thinksound.presets import TINY, Preset


def load(weights: Path, name: str, dtype: torch.dtype = torch.float32, preset: Preset = TINY) -> Any:
    """Load the network ``name`` of a preset; text encoders come with their tokenizer."""
    family = family_of(preset)
    key = preset.weights[name]
    return load_network(partial(family.build, name), weights, key, dtype, family.fold(name))


def load_as(kind: type[nn.Module], config: Any, weights: Path, key: str, dtype: torch.dtype) -> Any:
    """Load the weights of ``key`` into the network ``kind(config)``."""

    def build(path: Path) -> nn.Module:
        with torch.device("meta"):
            return kind(config)

    return load_network(build, weights, key, dtype)
