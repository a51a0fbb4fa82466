"""A small convolutional replacement for Synchformer's visual tower, for the tiny preset.

Convolutions are local and translation-equivariant by construction; a transformer has to learn both, from more
video than a laptop can process in an hour. Synchformer works on overlapping segments, so its features can be
up to half a second away from the latents that they modulate. This tower processes the whole clip: feature i
of S describes the i-th of S equal parts of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIFFERENCE_GAIN = 4.0  # of differences between frames, which are small
PICTURE_CHANNELS = 9  # a frame, the previous one, and their difference
TIME_KERNEL = 5


@dataclass(frozen=True)
class MotionConfig:
    """Configuration of the motion tower."""

    embed_dim: int = 96
    channels: tuple[int, ...] = (24, 48, 64)  # of the convolutions, each of which halves height and width
    depth: int = 4  # convolutions along time
    image_size: int = 224
    pool: int = 4  # side of the squares of pixels that are averaged first


class MotionTower(nn.Module):
    """Frames ``(B, P, 3, 224, 224)`` at 25 fps, pixels in -1..1, to features ``(B, P, D)``."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config
        widths = (PICTURE_CHANNELS, *config.channels)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        side = config.image_size // config.pool // 2 ** len(config.channels)
        self.places = nn.Linear(widths[-1] * side * side, config.embed_dim)
        self.times = nn.ModuleList(
            nn.Conv1d(config.embed_dim, config.embed_dim, TIME_KERNEL, padding=TIME_KERNEL // 2)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.follow(self.reduce(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))

    def reduce(self, pixels: Tensor) -> Tensor:
        """Downsample frames ``(P, 3, H, W)`` by averaging squares: ``(P, 3, H / pool, W / pool)``."""
        return F.avg_pool2d(pixels, self.config.pool)

    def follow(self, small: Tensor) -> Tensor:
        """Downsampled frames ``(B, P, 3, h, w)`` to features ``(B, P, D)`` float32."""
        small = small.to(self.places.weight.dtype)
        before = torch.cat([small[:, :1], small[:, :-1]], dim=1)
        x = torch.cat([before, small, (small - before) * DIFFERENCE_GAIN], dim=2).flatten(0, 1)
        for stage in self.stages:
            x = F.relu(stage(x))
        x = self.places(x.flatten(1)).unflatten(0, small.shape[:2]).transpose(1, 2)  # (B, D, P)
        for layer in self.times:
            x = x + layer(F.gelu(x))
        return self.norm(x.transpose(1, 2)).float()

    @staticmethod
    def spread(features: Tensor, count: int) -> Tensor:
        """Resample ``(B, P, D)`` linearly to ``count`` evenly spaced features, ``(B, count, D)``."""
        return F.interpolate(features.transpose(1, 2), size=count, mode="linear").transpose(1, 2)


class MotionEncoder(nn.Module):
    """The motion tower, under the attribute name of Synchformer's visual tower."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.vfeat_extractor = MotionTower(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Frames ``(B, P, 3, 224, 224)`` to one feature each, ``(B, P, D)``."""
        return self.vfeat_extractor(pixels)
