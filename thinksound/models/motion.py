"""A small convolutional stand-in for Synchformer's visual tower, for the tiny preset.

Same pictures in, same number of features out. Convolutions know from the start that neighbouring
pixels belong together and that a movement is the same everywhere; a transformer learns that from more
video than a laptop can show it in an hour.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MotionConfig

DIFFERENCE_GAIN = 4.0  # what moves is a small part of a picture
PICTURE_CHANNELS = 9  # two pictures and their difference


class MotionTower(nn.Module):
    """Segments ``(B, 16, 3, 224, 224)`` to features ``(B, 8, D)``."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config
        widths = (PICTURE_CHANNELS, *config.channels)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        side = config.image_size // config.pool // 2 ** len(config.channels)
        self.places = nn.Linear(widths[-1] * side * side, config.embed_dim)
        self.times = nn.ModuleList(
            nn.Conv1d(config.embed_dim, config.embed_dim, 3, padding=1) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, segments: Tensor) -> Tensor:
        pairs = self.embed(segments.flatten(0, 1))
        return self.encode(pairs.unflatten(0, (-1, self.config.time_steps)))

    def embed(self, pixels: Tensor) -> Tensor:
        """What happens in each two pictures of ``(P, 3, H, W)``: ``(P / 2, 1, D)`` float32."""
        return self.embed_small(F.avg_pool2d(pixels, self.config.pool))

    def embed_small(self, pixels: Tensor) -> Tensor:
        """`embed` of pictures that are reduced already, ``(P, 3, H / pool, W / pool)``."""
        first, second = pixels.to(self.places.weight.dtype).unflatten(0, (-1, 2)).unbind(1)
        x = torch.cat([first, second, (second - first) * DIFFERENCE_GAIN], dim=1)
        for stage in self.stages:
            x = F.relu(stage(x))
        return self.places(x.flatten(1)).float()[:, None]

    def encode(self, pairs: Tensor) -> Tensor:
        """Features ``(B, 8, D)`` of ``(B, 8, 1, D)``, each knowing the others of its segment."""
        x = pairs[:, :, 0].to(self.places.weight.dtype).transpose(1, 2)  # (B, D, 8)
        for layer in self.times:
            x = x + layer(F.gelu(x))
        return self.norm(x.transpose(1, 2)).float()
