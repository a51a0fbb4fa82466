"""MMAudio's VAE: mel spectrograms to latents at half their frame rate, and back.

Source: MMAudio, https://arxiv.org/abs/2412.15322, appendix. Residual blocks and attention preserve magnitudes
as in EDM2, https://arxiv.org/abs/2312.02696, section 2: no biases, no group norms, weights of fixed
magnitude, and weighted sums that are divided by the magnitude of their result.

The published file has the weights before normalisation. `network_tensors` normalises them once, so the
network consists of plain convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .folding import Folded

EPSILON = 1e-4  # added to every root mean square in a denominator
RESIDUAL_WEIGHT = 0.3  # of a block's residual, against its skip
SILU_SIZE = 0.596  # root mean square of the SiLU of standard normal values
ACTIVATION_LIMIT = 256.0
MULTIPLES = (1, 2, 4)  # of the width, per level; level 0 has the frame rate of the spectrogram
ENCODER_BLOCKS, DECODER_BLOCKS = 2, 3  # per level
LOG_VARIANCE_LIMITS = (-30.0, 20.0)


@dataclass(frozen=True)
class MelVAEConfig:
    """Configuration of encoder and decoder; a latent frame covers two frames of the spectrogram."""

    mel_bands: int
    latent_dim: int  # C
    channels: int  # width of level 0

    def __post_init__(self) -> None:
        for name in ("mel_bands", "latent_dim", "channels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiple for multiple in MULTIPLES)


MEL_VAE_16K = MelVAEConfig(mel_bands=80, latent_dim=20, channels=384)
MEL_VAE_44K = MelVAEConfig(mel_bands=128, latent_dim=40, channels=512)


def network_tensors(published: Mapping[str, Tensor]) -> Folded:
    """Returns the network's tensors from the published ones, which have the same names.

    Each weight of a convolution is divided by its root mean square per output channel, and by the square root
    of the number of values that a channel sums. Must not be applied to its own result.
    """
    return Folded(
        {
            name: partial(_sized_weight, published, name)
            if name.endswith(".weight")
            else partial(published.__getitem__, name)
            for name in published
        }
    )


def _sized_weight(published: Mapping[str, Tensor], name: str) -> Tensor:
    weight = published[name].float()
    axes = tuple(range(1, weight.ndim))
    size = weight.square().mean(dim=axes, keepdim=True).sqrt()
    return weight / (EPSILON + size) / math.sqrt(weight[0].numel())


def unit_size(x: Tensor) -> Tensor:
    """Normalise ``x (B, D, ...)`` to a root mean square of one over its channels."""
    size = x.float().square().mean(dim=1, keepdim=True).sqrt()
    return x / (EPSILON + size).to(x.dtype)


def activate(x: Tensor) -> Tensor:
    """SiLU scaled to preserve the magnitude of standard normal values."""
    return F.silu(x) / SILU_SIZE


def add_residual(skip: Tensor, residual: Tensor) -> Tensor:
    """Weighted sum of two independent signals of unit magnitude, which again has unit magnitude."""
    size = math.hypot(1 - RESIDUAL_WEIGHT, RESIDUAL_WEIGHT)
    return torch.lerp(skip, residual, RESIDUAL_WEIGHT) / size


def limit(x: Tensor) -> Tensor:
    """Clamp outliers, as in training."""
    return x.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv1d:
    """Returns a convolution without bias, ``(B, C_in, N)`` to ``(B, C_out, N)``."""
    return nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)


class ResidualBlock(nn.Module):
    """Two activated convolutions with a skip, ``(B, D_in, N)`` to ``(B, D_out, N)``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, 3)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.nin_shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.nin_shortcut = convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = unit_size(x)
        residual = self.conv2(activate(self.conv1(activate(x))))
        return add_residual(x if self.nin_shortcut is None else self.nin_shortcut(x), residual)


class Attention(nn.Module):
    """Single-head self-attention over frames, ``(B, D, N)`` to ``(B, D, N)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = convolution(channels, 3 * channels, 1)
        self.proj_out = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(1, (-1, 3))  # (B, D, 3, N)
        q, k, v = unit_size(qkv).transpose(1, 3).unbind(2)  # (B, N, D)
        seen = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return add_residual(x, self.proj_out(seen.transpose(1, 2)))


class Middle(nn.Module):
    """The middle of encoder and decoder, at the latents' frame rate and the full width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return limit(self.block_2(self.attn_1(self.block_1(x))))


class Downsample(nn.Module):
    """Halves the number of frames: ``(B, D, N)`` to ``(B, D, N // 2)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels, 1)
        self.conv2 = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.avg_pool1d(self.conv1(x), 2))


class Upsample(nn.Module):
    """Doubles the number of frames: ``(B, D, N)`` to ``(B, D, 2N)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=-1))


class Level(nn.Module):
    """Residual blocks, of which the first changes the width; at one level a resampling follows."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (blocks - 1)
        self.block = nn.ModuleList(ResidualBlock(width, out_channels) for width in widths)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = limit(block(x))
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Encoder(nn.Module):
    """Standardised spectrogram ``(B, bands, N)`` to mean and log-variance, ``(B, 2C, N // 2)``."""

    def __init__(self, config: MelVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = convolution(config.mel_bands, widths[0], 3)
        self.down = nn.ModuleList(
            Level(a, b, ENCODER_BLOCKS) for a, b in zip((widths[0], *widths), widths, strict=False)
        )
        self.down[0].downsample = Downsample(widths[0])
        self.mid = Middle(widths[-1])
        self.conv_out = convolution(widths[-1], 2 * config.latent_dim, 3)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_in(mel)
        for level in self.down:
            x = level(x)
        return self.conv_out(activate(self.mid(x))) * (1 + self.learnable_gain)


class Decoder(nn.Module):
    """Latents ``(B, C, T)`` to a standardised spectrogram ``(B, bands, 2T)``."""

    def __init__(self, config: MelVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = convolution(config.latent_dim, widths[-1], 3)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(a, b, DECODER_BLOCKS) for a, b in zip((*widths[1:], widths[-1]), widths, strict=True)
        )
        self.up[1].upsample = Upsample(widths[1])
        self.conv_out = convolution(widths[0], config.mel_bands, 3)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(activate(x)) * (1 + self.learnable_gain)


class MelVAE(nn.Module):
    """Encoder, Gaussian bottleneck, decoder; spectrograms are standardised with the file's statistics.

    Through the attention in the middle, each frame depends on the whole input, so decoding in windows would
    change the result. Windows are not needed: at 44.1 kHz the largest activation of a minute is 21 MB.
    """

    data_mean: Tensor
    data_std: Tensor

    def __init__(self, config: MelVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("data_mean", torch.zeros(1, config.mel_bands, 1))
        self.register_buffer("data_std", torch.ones(1, config.mel_bands, 1))

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel spectrograms ``mel (B, bands, N)`` to mean and log-variance, each ``(B, C, N // 2)``."""
        mean, deviation = self._statistics(mel.device)
        standard = (mel.to(mean.dtype) - mean) / deviation
        latent_mean, log_variance = self.encoder(standard).chunk(2, dim=1)
        return latent_mean, log_variance.clamp(*LOG_VARIANCE_LIMITS)

    @staticmethod
    def sample(mean: Tensor, log_variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns sampled latents and twice their KL divergence from a standard normal (a scalar)."""
        variance = log_variance.exp()
        divergence = (mean.square() + variance - log_variance - 1).sum(dim=1).mean()
        return noise * variance.sqrt() + mean, divergence

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, C, T)`` to log-mel spectrograms ``(B, bands, 2T)``."""
        mean, deviation = self._statistics(latents.device)
        return self.decoder(latents.to(mean.dtype)) * deviation + mean

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the data, on ``device``, where only half of the network may be."""
        return self.data_mean.to(device), self.data_std.to(device)
