"""MMAudio: DFN5B CLIP and Synchformer, a flow-matching transformer, a mel VAE and the vocoder BigVGAN.

Source: https://arxiv.org/abs/2412.15322. It reads a caption and a negative prompt, which says what should not
be heard. Sound is mono at 16 or 44.1 kHz. Video is optional: a still image or the text alone is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checkpoints.load import Encoder, Fold
from ..encoders.dfn5b import DFN5B, PUBLISHED_CONFIG, Tokenizer, build_dfn5b, build_network
from ..encoders.sync import encode_sync
from ..encoders.views import DFN5B_VIEW, MMAUDIO_SYNC_VIEW, clip_frame_count, sync_feature_count
from ..models import bigvgan, mel_vae
from ..models.bigvgan import BIGVGAN_16K, BIGVGAN_44K, BigVGAN, BigVGANConfig
from ..models.flow import FlowTransformer
from ..models.mel import MEL_16K, MEL_44K, MelConfig, log_mel
from ..models.mel_vae import MEL_VAE_16K, MEL_VAE_44K, MelVAE, MelVAEConfig
from ..models.mmaudio import (
    LARGE_44K,
    LARGE_44K_V2,
    MEDIUM_44K,
    SMALL_16K,
    SMALL_44K,
    MMAudioConfig,
    MMAudioFlow,
)
from ..models.synchformer import SYNC_FEATURES_PER_SEGMENT, Synchformer, SynchformerConfig
from ..presets import Preset
from ..sampling.solvers import turned_flow_times
from .flow import FlowFamily, FlowModel
from .protocol import TRANSFORMER, Condition, DecodingStep, Features, FrameStep, SoundFormat, TextStep

NEGATIVE = "negative_text_features"  # used by guidance; not an input of the transformer


@dataclass(frozen=True)
class Sizes:
    """Configurations of all networks of a preset."""

    flow: MMAudioConfig
    mel: MelConfig
    vae: MelVAEConfig
    vocoder: BigVGANConfig
    synchformer: SynchformerConfig = field(default_factory=SynchformerConfig)
    clip: Mapping[str, Any] | None = None  # in open_clip's format; None: read from the weight folder


SIZES = {
    "small-16k": Sizes(SMALL_16K, MEL_16K, MEL_VAE_16K, BIGVGAN_16K),
    "small-44k": Sizes(SMALL_44K, MEL_44K, MEL_VAE_44K, BIGVGAN_44K),
    "medium-44k": Sizes(MEDIUM_44K, MEL_44K, MEL_VAE_44K, BIGVGAN_44K),
    "large-44k": Sizes(LARGE_44K, MEL_44K, MEL_VAE_44K, BIGVGAN_44K),
    "large-44k-v2": Sizes(LARGE_44K_V2, MEL_44K, MEL_VAE_44K, BIGVGAN_44K),
    "tiny": Sizes(
        MMAudioConfig(
            latent_dim=8,
            clip_dim=32,
            sync_dim=48,
            text_dim=16,
            hidden_dim=64,
            depth=4,
            fused_depth=2,
            num_heads=4,
        ),
        MEL_16K,
        MelVAEConfig(mel_bands=80, latent_dim=8, channels=32),
        BigVGANConfig(80, 32, (8, 8, 4), (16, 16, 8), "tanh", final_bias=True),
        SynchformerConfig(embed_dim=48, depth=1, num_heads=2),
        {
            **PUBLISHED_CONFIG,
            "embed_dim": 32,
            "vision_cfg": {"image_size": 378, "layers": 1, "width": 32, "head_width": 16, "patch_size": 42},
            "text_cfg": {**PUBLISHED_CONFIG["text_cfg"], "width": 16, "heads": 2, "layers": 1},
        },
    ),
}


def family(preset: Preset) -> MMAudioFamily:
    return MMAudioFamily(preset, SIZES[preset.size])


def latent_length(duration_s: float, sample_rate: int, hop: int) -> int:
    """Returns the latent frames, rounded up, in ``duration_s`` seconds; ``hop`` is 512, at 44.1 kHz 1024."""
    return max(1, math.ceil(float(duration_s) * sample_rate / hop))


class MMAudioFamily(FlowFamily):
    """MMAudio at any size."""

    views = (DFN5B_VIEW, MMAUDIO_SYNC_VIEW)
    texts = ("caption", "negative_prompt")
    trained_duration_s = 8.0
    training_peak = 0.95
    options = frozenset({"mask_away_clip", "reader"})
    needs_video = False
    still_views = (DFN5B_VIEW.name,)
    sound_networks = ("vae", "vocoder")
    noise_is_channels_last = True
    flow_times = staticmethod(turned_flow_times)

    def __init__(self, preset: Preset, sizes: Sizes) -> None:
        super().__init__(preset)
        self.sizes = sizes
        flow, rate = sizes.flow, sizes.mel.sample_rate
        hop = 2 * sizes.mel.hop  # the VAE halves the frame rate
        self.conditions = (
            Condition("clip_features", "clip", lambda s: (clip_frame_count(s), flow.clip_dim)),
            Condition(
                "sync_features",
                "sync",
                lambda s: (sync_feature_count(s), flow.sync_dim),
                multiple=SYNC_FEATURES_PER_SEGMENT,
            ),
            Condition("text_features", "text", lambda s: (flow.text_length, flow.text_dim)),
        )
        self.sound = SoundFormat(
            sample_rate=rate,
            channels=1,
            hop=hop,
            latent_dim=flow.latent_dim,
            latent_length=partial(latent_length, sample_rate=rate, hop=hop),
        )

    def build(self, network: str, path: Path) -> nn.Module | Encoder:
        if network == "clip":
            return build_dfn5b(path) if self.sizes.clip is None else _clip(self.sizes.clip)
        with torch.device("meta"):
            return self.create(network)

    def create(self, network: str) -> nn.Module:
        makers: dict[str, Callable[[], nn.Module]] = {
            "synchformer": lambda: Synchformer(self.sizes.synchformer),
            TRANSFORMER: lambda: MMAudioFlow(self.sizes.flow),
            "vae": lambda: MelVAE(self.sizes.vae),
            "vocoder": lambda: BigVGAN(self.sizes.vocoder),
        }
        return makers[network]()

    def fold(self, network: str) -> Fold | None:
        return {"vae": mel_vae.network_tensors, "vocoder": bigvgan.network_tensors}.get(network)

    def placed(self, network: str, built: Any) -> nn.Module:
        # Generation never encodes sound, so the VAE's encoder is not moved.
        return built.decoder if network == "vae" else super().placed(network, built)

    def decoding(self, built: Mapping[str, Any]) -> tuple[DecodingStep, ...]:
        return DecodingStep("vae", built["vae"].decode), DecodingStep("vocoder", built["vocoder"].vocode)

    def assemble(self, built: Mapping[str, Any]) -> MMAudioModel:
        return MMAudioModel(self, built)

    def encode_nulls(self, transformer: FlowTransformer, load: Callable[[str], Any]) -> None:
        cast(MMAudioFlow, transformer).empty_string_feat.copy_(load("clip").encode_text(""))

    @staticmethod
    def draw_latents(mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        latents, _ = MelVAE.sample(mean, spread, noise)
        return latents


def _clip(config: Mapping[str, Any]) -> DFN5B:
    return DFN5B(build_network(dict(config)), Tokenizer())


class MMAudioModel(FlowModel):
    """MMAudio's networks with their weights."""

    def __init__(self, family: MMAudioFamily, built: Mapping[str, Any]) -> None:
        self.family = family
        clip, self.vae, mel = built["clip"], built["vae"], family.sizes.mel
        self.networks = {name: family.placed(name, network) for name, network in built.items()}
        self.text_steps = (
            TextStep("clip", "caption", "text_features", clip.encode_text, "CLIP", clip.read),
            TextStep("clip", "negative_prompt", NEGATIVE, clip.encode_text, "CLIP", clip.read),
        )
        self.frame_steps = (
            FrameStep("clip", "clip", "clip_features", clip.encode_frames),
            FrameStep(
                "synchformer",
                "sync",
                "sync_features",
                partial(encode_sync, built["synchformer"].vfeat_extractor),
            ),
        )
        self.decoding = family.decoding(built)
        self.sound_encoder = self.vae.encoder
        self._mel = mel

    def encode_sound(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(log_mel(waveforms.mean(dim=1, keepdim=True), self._mel))

    def conditions(self, features: Sequence[Features], duration_s: float) -> list[Tensor]:
        # A still image has one CLIP feature, which is repeated for every frame.
        count = self.family.conditions[0].shape(duration_s)[0]
        still = [len(each.get("clip_features", ())) == 1 < count for each in features]
        spread = [
            {**each, "clip_features": each["clip_features"].expand(count, -1)} if is_still else each
            for each, is_still in zip(features, still, strict=True)
        ]
        return super().conditions(spread, duration_s)

    def unconditional(self, features: Sequence[Features], given: Sequence[Tensor]) -> Sequence[Tensor] | None:
        if not all(NEGATIVE in each for each in features):
            return None
        clip, sync, _ = self.transformer.empty_features(given[0].shape[1], given[1].shape[1])
        batch = len(features)
        return [
            clip.expand(batch, -1, -1),
            sync.expand(batch, -1, -1),
            torch.stack([each[NEGATIVE] for each in features]),
        ]
