"""The audio VAE of Stable Audio, "oobleck": 44.1 kHz stereo to 64 channels at 21.5 Hz and back.

Source: Stable Audio Open, https://arxiv.org/abs/2407.14358, section 2.1; the snake activation is BigVGAN's,
https://arxiv.org/abs/2206.04658. Convolutions keep the checkpoint's weight normalisation (gain ``weight_g``,
direction ``weight_v``) and compute the effective weight in each call, in float32. With one decoding per
request, this costs less than one convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class OobleckConfig:
    """Configuration of the audio VAE."""

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


def decoder_context(config: OobleckConfig) -> int:
    """Returns the number of latent frames on each side on which a decoded sample can depend.

    The first and the last convolution reach 3 positions. In each block, the transposed convolution reaches
    one position at the rate before it, and the residual units reach 39 at the rate after it.
    """
    reach, rate = 3.0, 1  # positions per latent frame
    for stride in reversed(config.strides):
        reach += 1 / rate
        rate *= stride
        reach += 3 * sum(DILATIONS) / rate
    return math.ceil(reach + 3 / rate)


class Snake(nn.Module):
    """``x + sin(alpha x)^2 / beta`` with per-channel alpha and beta, stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha.float().exp()[:, None], self.beta.float().exp()[:, None]
        return x + (1.0 / (beta + 1e-9)).to(x.dtype) * torch.sin(x * alpha.to(x.dtype)).square()


class WeightNormConv(nn.Module):
    """Convolution ``(B, C_in, N)`` to ``(B, C_out, N')`` whose weight is ``g * v / |v|``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        shape = self.weight_shape(in_channels, out_channels, kernel_size)
        if bias:
            self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(out_channels))
        else:
            self.register_parameter("bias", None)
        self.weight_g = nn.Parameter(torch.ones(shape[0], 1, 1))
        self.weight_v = nn.Parameter(torch.empty(shape))

    @staticmethod
    def weight_shape(in_channels: int, out_channels: int, kernel_size: int) -> tuple[int, int, int]:
        return out_channels, in_channels, kernel_size

    def weight(self) -> Tensor:
        """Returns the effective weight, in the dtype of the parameters."""
        weight: Tensor = torch._weight_norm(self.weight_v.float(), self.weight_g.float(), 0)
        return weight.to(self.weight_v.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation)


class WeightNormConvTranspose(WeightNormConv):
    """Transposed convolution, for upsampling; the gain is per input channel, as in the checkpoint."""

    @staticmethod
    def weight_shape(in_channels: int, out_channels: int, kernel_size: int) -> tuple[int, int, int]:
        return in_channels, out_channels, kernel_size

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x, self.weight(), self.bias, self.stride, self.padding)


class ResidualUnit(nn.Module):
    """Two activated convolutions with a skip; the dilated one covers ``6 * dilation + 1`` samples."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Snake(channels),
            WeightNormConv(channels, channels, 7, padding=3 * dilation, dilation=dilation),
            Snake(channels),
            WeightNormConv(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class EncoderBlock(nn.Module):
    """Residual units, then downsampling by ``stride``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(ResidualUnit(in_channels, dilation) for dilation in DILATIONS),
            Snake(in_channels),
            WeightNormConv(in_channels, out_channels, 2 * stride, stride, padding=math.ceil(stride / 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderBlock(nn.Module):
    """Upsampling by ``stride``, then residual units."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Snake(in_channels),
            WeightNormConvTranspose(
                in_channels, out_channels, 2 * stride, stride, padding=math.ceil(stride / 2)
            ),
            *(ResidualUnit(out_channels, dilation) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    """Audio ``(B, 2, A)`` to mean and scale of the latents, ``(B, 2C, A / hop)``."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in (1, *config.channel_multiples)]
        self.layers = nn.Sequential(
            WeightNormConv(config.audio_channels, widths[0], 7, padding=3),
            *(EncoderBlock(a, b, s) for a, b, s in zip(widths[:-1], widths[1:], config.strides, strict=True)),
            Snake(widths[-1]),
            WeightNormConv(widths[-1], 2 * config.latent_dim, 3, padding=1),
        )

    def forward(self, audio: Tensor) -> Tensor:
        return self.layers(audio)


class Decoder(nn.Module):
    """Latents ``(B, C, T)`` to audio ``(B, 2, hop * T)``."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in (1, *config.channel_multiples)][::-1]
        strides = config.strides[::-1]
        self.layers = nn.Sequential(
            WeightNormConv(config.latent_dim, widths[0], 7, padding=3),
            *(DecoderBlock(a, b, s) for a, b, s in zip(widths[:-1], widths[1:], strides, strict=True)),
            Snake(widths[-1]),
            WeightNormConv(widths[-1], config.audio_channels, 7, padding=3, bias=False),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class AudioVAE(nn.Module):
    """Encoder, Gaussian bottleneck, decoder."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Audio ``(B, 2, A)``, A a multiple of the hop, to mean and raw scale, each ``(B, C, A / hop)``."""
        mean, scale = self.encoder(audio).chunk(2, dim=1)
        return mean, scale

    @staticmethod
    def sample(mean: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns sampled latents and twice their KL divergence from a standard normal (a scalar)."""
        deviation = F.softplus(scale) + 1e-4
        variance = deviation.square()
        divergence = (mean.square() + variance - variance.log() - 1).sum(dim=1).mean()
        return noise * deviation + mean, divergence

    def decode(self, latents: Tensor, window: int = 256) -> Tensor:
        """Latents ``(B, C, T)`` to audio ``(B, 2, hop * T)``.

        More than ``window`` latent frames (12 s of the published model) are decoded in windows, with enough
        context on both sides that every sample equals that of a single pass. Memory is limited to that of one
        window.
        """
        length, hop, context = latents.shape[-1], self.config.hop, decoder_context(self.config)
        latents = latents.to(next(self.decoder.parameters()).dtype)
        pieces = []
        for start in range(0, length, window):
            stop = min(start + window, length)
            left, right = max(0, start - context), min(length, stop + context)
            piece = self.decoder(latents[..., left:right])
            pieces.append(piece[..., (start - left) * hop : (stop - left) * hop])
        return torch.cat(pieces, dim=-1)
