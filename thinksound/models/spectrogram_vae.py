"""The audio VAE of the tiny preset: two-dimensional convolutions on spectrograms.

It has the interface of the published VAE. The published VAE learns waveforms with their phases, which takes
far more training than a laptop allows. This one learns magnitudes, and `spectrum.synthesise` finds matching
phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .oobleck import AudioVAE
from .spectrum import analyse, from_picture, synthesise, to_picture


@dataclass(frozen=True)
class SpectrogramVAEConfig:
    """Configuration of the tiny preset's audio VAE."""

    channels: tuple[int, ...] = (16, 32, 64, 96, 96)  # each step halves the number of frequencies
    time_halvings: int = 2
    latent_dim: int = 32
    sample_rate: int = 16_000  # Hz
    spectrum: int = 512  # samples of one spectrum; the hop is a quarter of it

    @property
    def places(self) -> int:
        """Frequencies that remain between encoder and decoder."""
        return self.spectrum // 2 >> len(self.channels)

    @property
    def hop(self) -> int:
        """Audio samples per latent frame."""
        return self.spectrum // 4 << self.time_halvings


class ResidualBlock(nn.Module):
    """Two activated 3x3 convolutions with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def time_steps(config: SpectrogramVAEConfig) -> list[int]:
    """Returns the stride in time of each encoder step: 2 for ``time_halvings`` steps from the second."""
    return [2 if 0 < step <= config.time_halvings else 1 for step in range(len(config.channels))]


class SpectrogramEncoder(nn.Module):
    """Spectrograms ``(B, 2, F, N)`` to mean and raw scale of the latents, ``(B, 2C, T)``."""

    def __init__(self, config: SpectrogramVAEConfig) -> None:
        super().__init__()
        widths = (2, *config.channels)
        self.downs, self.blocks = nn.ModuleList(), nn.ModuleList()
        for step, stride in enumerate(time_steps(config)):
            a, b = widths[step], widths[step + 1]
            self.downs.append(nn.Conv2d(a, b, (4, 2 * stride if stride > 1 else 3), (2, stride), (1, 1)))
            self.blocks.append(ResidualBlock(b) if step else nn.Identity())
        self.out = nn.Conv1d(widths[-1] * config.places, 2 * config.latent_dim, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        x = picture
        for down, block in zip(self.downs, self.blocks, strict=True):
            x = block(down(x))
        return self.out(F.silu(x).flatten(1, 2))


class SpectrogramDecoder(nn.Module):
    """Latents ``(B, C, T)`` to spectrograms ``(B, 2, F, N)``."""

    def __init__(self, config: SpectrogramVAEConfig) -> None:
        super().__init__()
        self.places = config.places
        self.strides = time_steps(config)[::-1]
        widths = (*config.channels[::-1], 2)
        self.enter = nn.Conv1d(config.latent_dim, widths[0] * config.places, 3, padding=1)
        self.blocks, self.ups = nn.ModuleList(), nn.ModuleList()
        for step, stride in enumerate(self.strides):
            last = step == len(self.strides) - 1
            self.blocks.append(nn.Identity() if last else ResidualBlock(widths[step]))
            self.ups.append(nn.Conv2d(widths[step], widths[step + 1] * 2 * stride, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        x = self.enter(latents).unflatten(1, (-1, self.places))
        for block, up, stride in zip(self.blocks, self.ups, self.strides, strict=True):
            x = up(F.silu(block(x)))
            x = rearrange(x, "b (c u v) f n -> b c (f u) (n v)", u=2, v=stride)
        return x


class SpectrogramVAE(AudioVAE):
    """Encoder, Gaussian bottleneck, decoder."""

    encoder: SpectrogramEncoder  # type: ignore[assignment]
    decoder: SpectrogramDecoder  # type: ignore[assignment]

    def __init__(self, config: SpectrogramVAEConfig) -> None:
        nn.Module.__init__(self)
        self.spectrum = config.spectrum
        self.latent_dim, self.hop = config.latent_dim, config.hop
        self.encoder = SpectrogramEncoder(config)
        self.decoder = SpectrogramDecoder(config)

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Audio ``(B, 2, A)``, A a multiple of the hop, to mean and raw scale, each ``(B, C, A / hop)``."""
        return self.encode_frames(analyse(audio, self.spectrum))

    def encode_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrogram frames ``(B, 273, N)`` to mean and raw scale, like `encode`."""
        mean, scale = self.encoder(to_picture(frames, self.spectrum)).chunk(2, dim=1)
        return mean, scale

    def decode_frames(self, latents: Tensor) -> Tensor:
        """Latents ``(B, C, T)`` to spectrogram frames ``(B, 273, N)``."""
        return from_picture(self.decoder(latents), self.spectrum)

    def decode(self, latents: Tensor, window: int = 256) -> Tensor:
        """Latents ``(B, C, T)`` to audio ``(B, 2, hop * T)`` float32; ``window`` has no effect."""
        return synthesise(self.decode_frames(latents.to(self.decoder.enter.weight.dtype)), self.spectrum)
