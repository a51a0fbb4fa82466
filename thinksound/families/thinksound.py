"""ThinkSound: MetaCLIP, T5 and Synchformer, a flow-matching transformer and the VAE of Stable Audio.

Source: https://arxiv.org/abs/2506.21448. MetaCLIP reads the caption and T5 the chain of thought, or the
caption if there is none. Sound is 44.1 kHz stereo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.load import Encoder
from ..encoders.metaclip import MetaCLIP, build_metaclip
from ..encoders.reading import read_text
from ..encoders.sync import encode_sync
from ..encoders.t5 import T5Text, build_t5
from ..encoders.views import METACLIP_VIEW, SYNC_VIEW, clip_frame_count, sync_feature_count
from ..models.mmdit import MMDiT, MMDiTConfig
from ..models.oobleck import AudioVAE, OobleckConfig
from ..models.synchformer import SYNC_FEATURES_PER_SEGMENT, Synchformer, SynchformerConfig
from ..presets import Preset
from ..request import Texts
from ..sampling.solvers import flow_times
from .flow import FlowFamily, FlowModel
from .protocol import (
    TRANSFORMER,
    Condition,
    DecodingStep,
    FrameEncoder,
    FrameStep,
    SoundFormat,
    TextStep,
)


@dataclass(frozen=True)
class Sizes:
    """Configurations of the networks that are not described in their weight folders."""

    mmdit: MMDiTConfig = field(default_factory=MMDiTConfig)
    vae: OobleckConfig = field(default_factory=OobleckConfig)
    synchformer: SynchformerConfig = field(default_factory=SynchformerConfig)


SIZES = {"published": Sizes()}


def family(preset: Preset) -> ThinkSoundFamily:
    return ThinkSoundFamily(preset, SIZES[preset.size])


def latent_length(duration_s: float, sample_rate: int, hop: int) -> int:
    """Returns the latent frames in ``duration_s`` seconds, rounded to nearest as in the published sampler."""
    return max(1, round(sample_rate * float(duration_s) / hop))


class ThinkSoundFamily(FlowFamily):
    """ThinkSound at any size; the family `tiny` replaces two of its networks."""

    views = (METACLIP_VIEW, SYNC_VIEW)
    texts = ("caption", "cot")
    trained_duration_s = 9.0
    sound_networks = ("vae",)
    flow_times = staticmethod(flow_times)

    def __init__(self, preset: Preset, sizes: Any) -> None:
        super().__init__(preset)
        self.sizes = sizes
        mmdit, vae = sizes.mmdit, sizes.vae
        self.conditions = (
            Condition("clip_features", "clip", lambda s: (clip_frame_count(s), mmdit.clip_dim)),
            Condition(
                "sync_features",
                "sync",
                lambda s: (sync_feature_count(s), mmdit.sync_dim),
                multiple=SYNC_FEATURES_PER_SEGMENT,
            ),
            Condition("text_features", "text", lambda s: (mmdit.text_length, mmdit.clip_text_dim)),
            Condition("t5_features", "text", lambda s: (mmdit.text_length, mmdit.text_dim)),
        )
        self.sound = SoundFormat(
            sample_rate=vae.sample_rate,
            channels=2,
            hop=vae.hop,
            latent_dim=vae.latent_dim,
            latent_length=partial(latent_length, sample_rate=vae.sample_rate, hop=vae.hop),
        )

    def build(self, network: str, path: Path) -> nn.Module | Encoder:
        if network == "metaclip":
            return build_metaclip(path)
        if network == "t5":
            return build_t5(path)
        with torch.device("meta"):
            return self.create(network)

    def create(self, network: str) -> nn.Module:
        if network == "synchformer":
            return Synchformer(self.sizes.synchformer)
        return MMDiT(self.sizes.mmdit) if network == TRANSFORMER else AudioVAE(self.sizes.vae)

    def placed(self, network: str, built: nn.Module | Encoder) -> nn.Module:
        # Generation never encodes sound, so the VAE's encoder is not moved and stays mapped in its file.
        return built.decoder if isinstance(built, AudioVAE) else super().placed(network, built)

    def sync_encoder(self, synchformer: Any) -> FrameEncoder:
        """Returns the function from frames to synchronisation features."""
        return partial(encode_sync, synchformer.vfeat_extractor)

    def decoding(self, built: Mapping[str, Any]) -> tuple[DecodingStep, ...]:
        return (DecodingStep("vae", built["vae"].decode),)

    def assemble(self, built: Mapping[str, Any]) -> ThinkSoundModel:
        return ThinkSoundModel(self, built)

    def settle_texts(self, texts: Texts) -> dict[str, str]:
        settled = super().settle_texts(texts)
        return settled | {"cot": settled["cot"] or settled["caption"]}

    @staticmethod
    def draw_latents(mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        latents, _ = AudioVAE.sample(mean, spread, noise)
        return latents


class ThinkSoundModel(FlowModel):
    """ThinkSound's networks with their weights."""

    def __init__(self, family: ThinkSoundFamily, built: Mapping[str, Any]) -> None:
        self.family = family
        self.metaclip: MetaCLIP = built["metaclip"]
        self.t5: T5Text = built["t5"]
        self.vae: AudioVAE = built["vae"]
        self.networks = {name: family.placed(name, network) for name, network in built.items()}
        self.text_steps = (
            TextStep(
                "metaclip",
                "caption",
                "text_features",
                self.metaclip.encode_text,
                "MetaCLIP",
                partial(read_text, self.metaclip.tokenizer),
            ),
            TextStep("t5", "cot", "t5_features", self.t5.encode, "T5", partial(read_text, self.t5.tokenizer)),
        )
        self.frame_steps = (
            FrameStep("metaclip", "clip", "clip_features", self.metaclip.encode_frames),
            FrameStep("synchformer", "sync", "sync_features", family.sync_encoder(built["synchformer"])),
        )
        self.decoding = family.decoding(built)
        self.sound_encoder = self.vae.encoder

    def encode_sound(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(waveforms)
