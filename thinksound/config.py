"""Frozen descriptions of the three networks we own; defaults are the published sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .errors import InputError


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Settings of the flow-matching transformer that ThinkSound and MMAudio share."""

    latent_dim: int  # C, channels of the VAE latents
    clip_dim: int = 1024  # width of a CLIP picture feature
    sync_dim: int = 768  # width of a Synchformer feature
    text_dim: int  # width of a text token
    text_length: int = 77  # tokens of a text
    hidden_dim: int  # D
    depth: int  # joint blocks and fused blocks together
    fused_depth: int  # blocks that see the latents alone
    num_heads: int  # H
    kernel_size: int = 3  # of the blocks' convolutions along the latents
    audio_kernel_size: int  # of the convolutions through which the latents enter
    sync_kernel_size: int = 7
    mlp_ratio: float = 4.0
    input_activation: Literal["silu", "selu"] = "silu"  # in the projections of latents and synchronisation
    token_activation: bool = True  # a SiLU in the projections of pictures and text
    time_dim: int | None = None  # cosines and sines of the flow time; None: hidden_dim
    time_scale: float = 10_000.0  # radians per unit of flow time at the highest frequency
    output_sees_sync: bool  # whether synchronisation modulates the output block

    def __post_init__(self) -> None:
        if self.hidden_dim % self.num_heads or (self.hidden_dim // self.num_heads) % 2:
            raise InputError(
                f"hidden_dim {self.hidden_dim} must be an even multiple of num_heads {self.num_heads}"
            )
        if not 0 < self.fused_depth < self.depth:
            raise InputError(f"fused_depth {self.fused_depth} must lie between 0 and depth {self.depth}")

    @property
    def joint_depth(self) -> int:
        """Blocks in which latents, pictures and text attend to each other."""
        return self.depth - self.fused_depth

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig(FlowConfig):
    """ThinkSound's flow-matching multimodal diffusion transformer."""

    latent_dim: int = 64
    clip_text_dim: int = 1024  # width of a MetaCLIP text token
    text_dim: int = 2048  # width of a T5 token; MetaCLIP tokens are zero-padded to it
    hidden_dim: int = 1024
    depth: int = 21
    fused_depth: int = 14
    num_heads: int = 16
    audio_kernel_size: int = 3
    output_sees_sync: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_text_dim > self.text_dim:
            raise InputError(f"clip_text_dim {self.clip_text_dim} is larger than text_dim {self.text_dim}")


@dataclass(frozen=True)
class OobleckConfig:
    """The audio VAE of Stable Audio ("oobleck")."""

    audio_channels: int = 2
    channels: int = 128  # width at the audio rate
    channel_multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    strides: tuple[int, ...] = (2, 4, 4, 8, 8)
    latent_dim: int = 64
    sample_rate: int = 44_100  # Hz

    def __post_init__(self) -> None:
        if len(self.channel_multiples) != len(self.strides):
            raise InputError(
                f"{len(self.channel_multiples)} channel_multiples for {len(self.strides)} strides"
            )

    @property
    def hop(self) -> int:
        """Audio samples per latent frame."""
        return math.prod(self.strides)


@dataclass(frozen=True)
class SpectrogramVAEConfig:
    """The audio VAE of the tiny preset, which sees spectrograms as pictures."""

    channels: tuple[int, ...] = (16, 32, 64, 96, 96)  # each step halves the frequencies
    time_halvings: int = 2
    latent_dim: int = 32
    sample_rate: int = 16_000  # Hz
    spectrum: int = 512  # samples of one spectrum; one begins every quarter of it

    @property
    def places(self) -> int:
        """Frequencies that are left between encoder and decoder."""
        return self.spectrum // 2 >> len(self.channels)

    @property
    def hop(self) -> int:
        """Audio samples per latent frame."""
        return self.spectrum // 4 << self.time_halvings


@dataclass(frozen=True)
class SynchformerConfig:
    """The visual tower of Synchformer (divided space-time attention)."""

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 224
    patch_size: int = 16
    patch_frames: int = 2
    segment_frames: int = 16

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise InputError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def time_steps(self) -> int:
        """Features per segment."""
        return self.segment_frames // self.patch_frames


@dataclass(frozen=True)
class MotionConfig:
    """The convolutional stand-in for Synchformer's visual tower in the tiny preset."""

    embed_dim: int = 96
    channels: tuple[int, ...] = (24, 48, 64)  # of the convolutions, each of which halves the picture
    depth: int = 4  # convolutions along time
    image_size: int = 224
    pool: int = 4  # pixels that are averaged on each side before anything else


@dataclass(frozen=True)
class OffsetConfig:
    """All of Synchformer: two towers of one size, and the head that hears how late the sound is."""

    towers: SynchformerConfig = SynchformerConfig()
    mel_bins: int = 128
    mel_frames: int = 66  # of one segment's spectrogram
    audio_patch_size: int = 16
    audio_patch_stride: int = 10
    head_depth: int = 3
    head_heads: int = 8
    segments: int = 14  # that are compared at once
    offsets: int = 21  # classes, evenly spread over -2 to 2 s

    @property
    def bands(self) -> int:
        """Patches of a spectrogram one above the other."""
        return (self.mel_bins - self.audio_patch_size) // self.audio_patch_stride + 1

    @property
    def moments(self) -> int:
        """Patches of a spectrogram side by side: features per segment."""
        return (self.mel_frames - self.audio_patch_size) // self.audio_patch_stride + 1
