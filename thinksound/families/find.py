"""From the name of a preset to its family."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from ..checkpoints.convert import Contents
from ..checkpoints.load import network_of
from ..presets import PRESETS, Preset
from .protocol import Family


def family_of(preset: Preset) -> Family:
    """The family of a preset, with the preset's sizes; imports that family's networks and no other's."""
    module = import_module(f"{__package__}.{preset.family}")
    return cast(Family, module.family(preset))


def contents_of(key: str, path: Path) -> Contents:
    """What is needed of the published file of ``key`` at ``path``; nothing known where no preset loads it."""
    for preset in PRESETS.values():
        for name, network in preset.networks.items():
            if network.key == key:
                family = family_of(preset)
                built = network_of(family.build(name, path))
                return Contents(built.state_dict().keys(), family.fold(name))
    return Contents()
