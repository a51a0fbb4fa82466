"""The vocoder BigVGAN: log-mel spectrograms to mono sound.

Source: https://arxiv.org/abs/2206.04658. Each activation is anti-aliased: it is computed at twice the rate,
between two low-pass filters. The filters are computed here; `network_tensors` drops their copies in files.

A sample depends on a limited part of the spectrogram, so long inputs could be decoded in windows with the
same result, as by the decoder of `oobleck`. Here they are decoded in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .folding import Folded, fold_weight_norm
from .oobleck import Snake

KERNELS = (3, 7, 11)  # of the residual blocks after each upsampler; their outputs are averaged
DILATIONS = (1, 3, 5)
TAPS = 12  # of the low-pass filter
CUTOFF = 0.25  # fraction of the doubled rate: the Nyquist frequency of the original rate
TRANSITION = 0.6  # transition width of the filter, as a fraction of the doubled rate


@dataclass(frozen=True)
class BigVGANConfig:
    """Configuration of the generator; each upsampler halves the channels."""

    mel_bands: int
    channels: int  # before the first upsampler
    rates: tuple[int, ...]  # of the upsamplers
    kernels: tuple[int, ...]  # of the upsamplers
    bound: Literal["tanh", "clamp"]  # limits samples to -1..1
    final_bias: bool  # whether the last convolution has a bias

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.kernels):
            raise InputError(f"{len(self.rates)} rates and {len(self.kernels)} kernels must be as many")
        if any(k < r or (k - r) % 2 for r, k in zip(self.rates, self.kernels, strict=True)):
            raise InputError(f"kernels {self.kernels} must exceed rates {self.rates} by even numbers")
        if self.channels < 1 or self.channels % 2 ** len(self.rates):
            raise InputError(f"channels {self.channels} cannot be halved {len(self.rates)} times")

    @property
    def hop(self) -> int:
        """Audio samples per frame of the spectrogram."""
        return math.prod(self.rates)


BIGVGAN_16K = BigVGANConfig(80, 1536, (4, 4, 2, 2, 2, 2), (8, 8, 4, 4, 4, 4), "tanh", final_bias=True)
BIGVGAN_44K = BigVGANConfig(128, 1536, (8, 4, 2, 2, 2, 2), (16, 8, 4, 4, 4, 4), "clamp", final_bias=False)


def network_tensors(published: Mapping[str, Tensor]) -> Folded:
    """Returns the network's tensors from the published generator's, with weight norm folded."""
    kept = [name for name in published if not name.endswith(".filter")]
    return fold_weight_norm(Folded({name: partial(published.__getitem__, name) for name in kept}))


def low_pass() -> Tensor:
    """Returns the 12 taps, float32, of a Kaiser-windowed sinc; they sum to one."""
    attenuation = (
        2.285 * (TAPS // 2 - 1) * math.pi * 2 * TRANSITION + 7.95
    )  # dB, by Kaiser's formula for half of the taps
    window = torch.kaiser_window(TAPS, False, 0.1102 * (attenuation - 8.7), dtype=torch.float64)
    position = torch.arange(TAPS, dtype=torch.float64) - (TAPS - 1) / 2
    taps = window * torch.sinc(2 * CUTOFF * position)
    return (taps / taps.sum()).float()


class AntiAliasedSnake(nn.Module):
    """The snake activation, computed at twice the rate: ``(B, D, N)`` to ``(B, D, N)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = Snake(channels)

    def forward(self, x: Tensor, taps: Tensor) -> Tensor:
        channels, half = x.shape[1], TAPS // 2
        kernel = taps.expand(channels, 1, TAPS)
        x = F.pad(x, (half - 1, half - 1), mode="replicate")
        x = F.conv_transpose1d(x, 2 * kernel, stride=2, groups=channels)
        edge = 3 * (half - 1)  # the doubled padding and the filter's tail
        x = self.act(x[..., edge:-edge])  # (B, D, 2N)
        x = F.pad(x, (half - 1, half), mode="replicate")
        return F.conv1d(x, kernel, stride=2, groups=channels)


class ResidualBlock(nn.Module):
    """Three pairs of activated convolutions, each with a skip; the first of a pair is dilated."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()

        def same_length(dilation: int) -> nn.Conv1d:
            padding = dilation * (kernel_size // 2)
            return nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation)

        self.convs1 = nn.ModuleList(same_length(dilation) for dilation in DILATIONS)
        self.convs2 = nn.ModuleList(same_length(1) for _ in DILATIONS)
        self.activations = nn.ModuleList(AntiAliasedSnake(channels) for _ in range(2 * len(DILATIONS)))

    def forward(self, x: Tensor, taps: Tensor) -> Tensor:
        acts1, acts2 = self.activations[::2], self.activations[1::2]
        for act1, conv1, act2, conv2 in zip(acts1, self.convs1, acts2, self.convs2, strict=True):
            x = x + conv2(act2(conv1(act1(x, taps)), taps))
        return x


class BigVGAN(nn.Module):
    """The generator."""

    def __init__(self, config: BigVGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels >> step for step in range(len(config.rates) + 1)]
        self.conv_pre = nn.Conv1d(config.mel_bands, widths[0], 7, padding=3)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose1d(a, b, kernel, rate, padding=(kernel - rate) // 2))
            for a, b, kernel, rate in zip(widths, widths[1:], config.kernels, config.rates, strict=False)
        )
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, kernel_size) for width in widths[1:] for kernel_size in KERNELS
        )
        self.activation_post = AntiAliasedSnake(widths[-1])
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3, bias=config.final_bias)

    def vocode(self, mel: Tensor) -> Tensor:
        """Log-mel spectrograms ``mel (B, bands, N)`` to sound ``(B, 1, hop * N)`` in -1..1."""
        taps = low_pass().to(self.conv_pre.weight)
        x = self.conv_pre(mel.to(self.conv_pre.weight.dtype))
        for step, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[len(KERNELS) * step : len(KERNELS) * (step + 1)]
            x = sum(block(x, taps) for block in blocks) / len(KERNELS)
        audio = self.conv_post(self.activation_post(x, taps))
        return audio.tanh() if self.config.bound == "tanh" else audio.clamp(-1, 1)
