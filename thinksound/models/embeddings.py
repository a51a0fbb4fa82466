"""The embedding of the flow time, and embedding tables without values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 10_000.0  # frequencies fall from the scale to nearly scale / BASE


class TimestepEmbedder(nn.Module):
    """Sinusoids of the flow time, then a small MLP: ``(B,)`` to ``(B, D)``.

    Frequencies and angles are computed in float32: with a scale of 10000, angles reach 10000 radians, where
    float16 and bfloat16 have no fractional digits.
    """

    def __init__(self, dim: int, sinusoid_dim: int, scale: float) -> None:
        """
        Args:
            dim: D, width of the embedding.
            sinusoid_dim: number of cosines and sines together.
            scale: radians per unit of flow time at the highest frequency.
        """
        super().__init__()
        self.sinusoid_dim, self.scale = sinusoid_dim, scale
        self.mlp = nn.Sequential(nn.Linear(sinusoid_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def frequencies(self, device: torch.device) -> Tensor:
        """Frequencies in radians per unit of flow time, ``(sinusoid_dim / 2,)``."""
        exponent = (
            torch.arange(0, self.sinusoid_dim, 2, dtype=torch.float32, device=device) / self.sinusoid_dim
        )
        return self.scale * (1.0 / (BASE**exponent))

    def sinusoids(self, timestep: Tensor) -> Tensor:
        """Cosines, then sines, ``(B, sinusoid_dim)`` float32."""
        angles = timestep.float()[:, None] * self.frequencies(timestep.device)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, timestep: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(timestep).to(next(self.mlp.parameters()).dtype))


def empty_table(count: int, width: int) -> nn.Embedding:
    """Returns an embedding of ``count`` uninitialised vectors, which a file or an initialiser must fill.

    `nn.Embedding` itself draws normal values. On the device ``meta`` this imports torch's compiler, which
    takes longer than all other steps of building a network.
    """
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)
