"""The bundled model: a small ThinkSound with another VAE and another synchronisation encoder.

MetaCLIP, T5 and the transformer are of the same classes as the published networks. The VAE works on
spectrograms and the synchronisation encoder is convolutional, because both learn from a few hours of
synthetic clips.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from ..encoders.motion import encode_motion
from ..models.mmdit import MMDiTConfig
from ..models.motion import MotionConfig, MotionEncoder
from ..models.spectrogram_vae import SpectrogramVAE, SpectrogramVAEConfig
from ..presets import Preset
from .protocol import FrameEncoder
from .thinksound import ThinkSoundFamily


@dataclass(frozen=True)
class Sizes:
    """Configurations of the networks that are not described in their weight folders."""

    mmdit: MMDiTConfig
    vae: SpectrogramVAEConfig = field(default_factory=SpectrogramVAEConfig)
    synchformer: MotionConfig = field(default_factory=MotionConfig)


SIZES = {
    "tiny": Sizes(
        MMDiTConfig(
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
    )
}


def family(preset: Preset) -> TinyFamily:
    return TinyFamily(preset, SIZES[preset.size])


class TinyFamily(ThinkSoundFamily):
    """ThinkSound's conditions and transformer, small enough for a CPU."""

    trained_duration_s = 4.0

    def create(self, network: str) -> nn.Module:
        if network == "synchformer":
            return MotionEncoder(self.sizes.synchformer)
        return SpectrogramVAE(self.sizes.vae) if network == "vae" else super().create(network)

    def sync_encoder(self, synchformer: Any) -> FrameEncoder:
        return partial(encode_motion, synchformer.vfeat_extractor)
