"""Embedding of the flow time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TIME_SCALE = 10_000.0  # flow time lies in 0..1; the frequencies are those of steps 0..10000


class TimestepEmbedder(nn.Module):
    """Sinusoids of the flow time, then a small MLP: ``(B,)`` to ``(B, D)``.

    The frequencies are computed in float32 and the angles stay in float32: they reach 10000
    radians, where float16 and bfloat16 have no fraction left.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def frequencies(self, device: torch.device) -> Tensor:
        """Radians per unit of flow time, ``(D / 2,)``."""
        exponent = torch.arange(0, self.dim, 2, dtype=torch.float32, device=device) / self.dim
        return TIME_SCALE * (1.0 / (TIME_SCALE**exponent))

    def sinusoids(self, timestep: Tensor) -> Tensor:
        """Cosines, then sines: ``(B, D)`` float32."""
        angles = timestep.float()[:, None] * self.frequencies(timestep.device)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, timestep: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(timestep).to(next(self.mlp.parameters()).dtype))
