"""Presets: named models with their family and weight files.

This module imports no network, so that a command line can be parsed at once. The configuration of a network
stands beside the network; `thinksound.families` puts a preset's networks together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import InputError
from .runtime.placement import Need


@dataclass(frozen=True)
class NetworkFile(Need):
    """One network of a preset; ``parameters`` counts what generation needs (the decoder alone of a VAE)."""

    key: str = ""  # of its weight file in checkpoints.registry


@dataclass(frozen=True)
class Preset:
    """One model that `thinksound.load` knows."""

    name: str
    family: str  # module in thinksound.families
    size: str  # key of the family's network sizes
    summary: str
    networks: dict[str, NetworkFile]  # in the order in which a request needs them
    guidance_scale: float  # default of a request
    steps: int  # default of a request

    @property
    def weights(self) -> dict[str, str]:
        """Keys of the weight files, by network."""
        return {name: network.key for name, network in self.networks.items()}

    @property
    def parameters(self) -> int:
        """Number of parameters of all networks together."""
        return sum(network.parameters for network in self.networks.values())


LIGHT = Preset(
    name="thinksound-light",
    family="thinksound",
    size="published",
    summary="the published light checkpoint",
    networks={
        "metaclip": NetworkFile(986_109_441, key="metaclip", is_encoder=True),
        "t5": NetworkFile(1_223_527_424, key="t5", is_encoder=True),
        "synchformer": NetworkFile(122_440_704, key="synchformer", is_encoder=True),
        "dit": NetworkFile(1_277_117_632, key="thinksound_light"),
        "vae": NetworkFile(78_122_626, key="vae", always_float32=True),
    },
    guidance_scale=5.0,
    steps=24,
)
FULL = replace(
    LIGHT,
    name="thinksound",
    summary="the published trainer checkpoint of the same network",
    networks=LIGHT.networks | {"dit": replace(LIGHT.networks["dit"], key="thinksound")},
)
TINY = Preset(
    name="tiny",
    family="tiny",
    size="tiny",
    summary="every network at a small size, bundled; trained on synthetic clips, knows their sounds alone",
    networks={
        "metaclip": NetworkFile(445_697, key="tiny_metaclip", is_encoder=True),
        "t5": NetworkFile(443_648, key="tiny_t5", is_encoder=True),
        "synchformer": NetworkFile(526_144, key="tiny_synchformer", is_encoder=True),
        "dit": NetworkFile(3_583_200, key="tiny_dit"),
        "vae": NetworkFile(868_740, key="tiny_vae", always_float32=True),
    },
    guidance_scale=4.0,
    steps=24,
)


def _mmaudio(size: str, summary: str, transformer: int, rate: str, vae: int, vocoder: int) -> Preset:
    """A published preset of MMAudio; the numbers are parameters."""
    return Preset(
        name=f"mmaudio-{size}",
        family="mmaudio",
        size=size,
        summary=summary,
        networks={
            "clip": NetworkFile(986_714_881, key="dfn5b", is_encoder=True),
            "synchformer": LIGHT.networks["synchformer"],
            "dit": NetworkFile(transformer, key=f"mmaudio_{size.replace('-', '_')}"),
            "vae": NetworkFile(vae, key=f"mmaudio_vae_{rate}", always_float32=True),
            "vocoder": NetworkFile(vocoder, key=f"bigvgan_{rate}", always_float32=True),
        },
        guidance_scale=4.5,
        steps=25,
    )


MMAUDIO = tuple(
    _mmaudio(size, f"MMAudio, {words}", transformer, *sound)
    for size, words, transformer, sound in (
        ("small-16k", "small, 16 kHz", 157_204_756, ("16k", 99_127_297, 112_199_473)),
        ("small-44k", "small, 44.1 kHz", 157_330_216, ("44k", 176_340_993, 122_152_752)),
        ("medium-44k", "medium, 44.1 kHz", 621_727_016, ("44k", 176_340_993, 122_152_752)),
        ("large-44k", "large, 44.1 kHz", 1_029_923_240, ("44k", 176_340_993, 122_152_752)),
        (
            "large-44k-v2",
            "large, 44.1 kHz, version 2: its authors' choice",
            1_030_496_680,
            ("44k", 176_340_993, 122_152_752),
        ),
    )
)
MMAUDIO_TINY = Preset(
    name="mmaudio-tiny",
    family="mmaudio",
    size="tiny",
    summary="MMAudio's networks at a small size with random values: noise, to try everything on",
    networks={
        "clip": NetworkFile(981_441, key="mmaudio_tiny_clip", is_encoder=True),
        "synchformer": NetworkFile(186_768, key="mmaudio_tiny_synchformer", is_encoder=True),
        "dit": NetworkFile(1_913_560, key="mmaudio_tiny_dit"),
        "vae": NetworkFile(697_857, key="mmaudio_tiny_vae", always_float32=True),
        "vocoder": NetworkFile(72_361, key="mmaudio_tiny_vocoder", always_float32=True),
    },
    guidance_scale=4.5,
    steps=25,
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (LIGHT, FULL, TINY, *MMAUDIO, MMAUDIO_TINY)}
DEFAULT_PRESET = LIGHT.name


def get_preset(name: str) -> Preset:
    """Return the preset called ``name``; raises `InputError` if there is none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset {name!r} is not known; give one of {', '.join(PRESETS)}", option="preset")
    return PRESETS[name]
