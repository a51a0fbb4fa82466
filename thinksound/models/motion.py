"""A small convolutional stand-in for Synchformer's visual tower, for the tiny preset.

Convolutions know from the start that neighbouring pixels belong together and that a movement is the
same everywhere; a transformer learns that from more video than a laptop can show it in an hour. And
where Synchformer looks at overlapping segments, whose features then lie up to half a second beside
the latents that they modulate, this tower follows the whole clip: feature i of S tells of the i-th of
S equal parts of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIFFERENCE_GAIN = 4.0  # what moves is a small part of a picture
PICTURE_CHANNELS = 9  # a picture, the one before, and their difference
TIME_KERNEL = 5


@dataclass(frozen=True)
class MotionConfig:
    """The convolutional stand-in for Synchformer's visual tower in the tiny preset."""

    embed_dim: int = 96
    channels: tuple[int, ...] = (24, 48, 64)  # of the convolutions, each of which halves the picture
    depth: int = 4  # convolutions along time
    image_size: int = 224
    pool: int = 4  # pixels that are averaged on each side before anything else


class MotionTower(nn.Module):
    """Pictures ``(B, P, 3, 224, 224)``, 25 per second, pixels in -1..1, to features ``(B, P, D)``."""

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
        """Pictures ``(P, 3, H, W)`` averaged over squares: ``(P, 3, H / pool, W / pool)``."""
        return F.avg_pool2d(pixels, self.config.pool)

    def follow(self, small: Tensor) -> Tensor:
        """Features ``(B, P, D)`` float32 of reduced pictures ``(B, P, 3, h, w)``."""
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
        """``(B, P, D)`` as ``count`` features of equal parts of the clip, between neighbours linearly."""
        return F.interpolate(features.transpose(1, 2), size=count, mode="linear").transpose(1, 2)


class MotionEncoder(nn.Module):
    """The motion tower under the name that Synchformer's visual tower has in its file."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.vfeat_extractor = MotionTower(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """One feature per frame: ``(B, P, 3, 224, 224)`` to ``(B, P, D)``."""
        return self.vfeat_extractor(pixels)
