"""Finds the family of a preset, and the contents of its weight files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from ..checkpoints.convert import Contents
from ..checkpoints.load import network_of
from ..presets import PRESETS, Preset
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
