"""Embedding of the flow time, and tables of vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 10_000.0  # the frequencies fall from 1 to nearly 1 / BASE, times the scale


class TimestepEmbedder(nn.Module):
    """Sinusoids of the flow time, then a small MLP: ``(B,)`` to ``(B, D)``.

    The frequencies are computed in float32 and the angles stay in float32: with a scale of 10000
    they reach 10000 radians, where float16 and bfloat16 have no fraction left.
    """

    def __init__(self, dim: int, sinusoid_dim: int, scale: float) -> None:
        """
        Args:
            dim: D, width of the embedding.
            sinusoid_dim: cosines and sines together.
            scale: radians per unit of flow time at the highest frequency.
        """
        super().__init__()
        self.sinusoid_dim, self.scale = sinusoid_dim, scale
        self.mlp = nn.Sequential(nn.Linear(sinusoid_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def frequencies(self, device: torch.device) -> Tensor:
        """Radians per unit of flow time, ``(sinusoid_dim / 2,)``."""
        exponent = (
            torch.arange(0, self.sinusoid_dim, 2, dtype=torch.float32, device=device) / self.sinusoid_dim
        )
        return self.scale * (1.0 / (BASE**exponent))

    def sinusoids(self, timestep: Tensor) -> Tensor:
        """Cosines, then sines: ``(B, sinusoid_dim)`` float32."""
        angles = timestep.float()[:, None] * self.frequencies(timestep.device)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, timestep: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(timestep).to(next(self.mlp.parameters()).dtype))


def empty_table(count: int, width: int) -> nn.Embedding:
    """``count`` vectors without values, to be filled from a file or by an initialisation.

    `nn.Embedding` itself draws normal values. On the device ``meta`` that imports torch's compiler, which
    takes longer than everything else in building a network.
    """
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)
