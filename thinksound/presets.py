"""Named models: network sizes and the weight files that belong to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .config import MMDiTConfig, MotionConfig, OobleckConfig, SpectrogramVAEConfig, SynchformerConfig
from .errors import InputError

# The five networks of a request, in the order in which it needs them.
NETWORKS = ("metaclip", "t5", "synchformer", "dit", "vae")

TINY_MMDIT = MMDiTConfig(
    latent_dim=32,
    clip_dim=64,
    clip_text_dim=64,
    sync_dim=96,
    text_dim=128,
    hidden_dim=96,
    depth=6,
    fused_depth=4,
    num_heads=4,
)
TINY_VAE = SpectrogramVAEConfig()  # 512 samples a latent, 31.25 latents a second
TINY_SYNCHFORMER = MotionConfig()


@dataclass(frozen=True)
class Preset:
    """One model that `thinksound.load` knows."""

    name: str
    summary: str
    mmdit: MMDiTConfig
    vae: OobleckConfig | SpectrogramVAEConfig
    synchformer: SynchformerConfig | MotionConfig
    weights: dict[str, str]  # network -> key in checkpoints.registry
    parameters: dict[str, int]  # network -> parameters that inference needs (of the VAE the decoder)
    guidance_scale: float  # where a request names none


LIGHT = Preset(
    name="thinksound-light",
    summary="the published light checkpoint",
    mmdit=MMDiTConfig(),
    vae=OobleckConfig(),
    synchformer=SynchformerConfig(),
    weights={
        "metaclip": "metaclip",
        "t5": "t5",
        "synchformer": "synchformer",
        "dit": "thinksound_light",
        "vae": "vae",
    },
    parameters={
        "metaclip": 986_109_441,
        "t5": 1_223_527_424,
        "synchformer": 122_440_704,
        "dit": 1_277_117_632,
        "vae": 78_122_626,
    },
    guidance_scale=5.0,
)
FULL = replace(
    LIGHT,
    name="thinksound",
    summary="the published trainer checkpoint of the same network",
    weights=LIGHT.weights | {"dit": "thinksound"},
)
TINY = Preset(
    name="tiny",
    summary="every network at a small size, bundled; trained on made clips, knows their sounds alone",
    mmdit=TINY_MMDIT,
    vae=TINY_VAE,
    synchformer=TINY_SYNCHFORMER,
    weights={
        "metaclip": "tiny_metaclip",
        "t5": "tiny_t5",
        "synchformer": "tiny_synchformer",
        "dit": "tiny_dit",
        "vae": "tiny_vae",
    },
    parameters={
        "metaclip": 445_697,
        "t5": 443_648,
        "synchformer": 526_144,
        "dit": 3_583_200,
        "vae": 868_740,
    },
    guidance_scale=4.0,
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (LIGHT, FULL, TINY)}
DEFAULT_PRESET = LIGHT.name


def get_preset(name: str) -> Preset:
    """The preset called ``name``; raises `InputError` with the known names otherwise."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset {name!r} is not known; give one of {', '.join(PRESETS)}", option="preset")
    return PRESETS[name]
