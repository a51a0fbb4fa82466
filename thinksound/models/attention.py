"""Attention of the transformers: scaled dot products, query/key norm, rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000.0


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``q (B, H, N, d)`` over ``k, v (B, H, M, d)``, with merged heads: ``(B, N, H*d)``."""
    out = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, d)
    return out.transpose(1, 2).flatten(2)  # (B, N, D)


def rotary_table(length: int, head_dim: int, device: torch.device, frequency_scale: float = 1.0) -> Tensor:
    """Cosines and sines of rotary positions 0..length-1, ``(2, length, head_dim / 2)`` float32.

    bfloat16 would not be exact enough: with heads of 64 channels, angles at position 200 are off by up to
    0.16 radians. ``frequency_scale`` aligns two sequences that cover the same seconds at different rates; it
    is the ratio of their lengths (RoFormer, https://arxiv.org/abs/2104.09864; the scaling is MMAudio's,
    https://arxiv.org/abs/2412.15322, section 3.3).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / (ROTARY_BASE**exponent) * frequency_scale
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of ``x (B, H, N, d)`` by the angles of ``table``, in float32."""
    cos, sin = table  # (N, d/2)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed and returned in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), torch.finfo(torch.float32).eps)


class QKVProjection(nn.Module):
    """Tokens to queries, keys and values; q and k are normalised and, for tokens with positions, rotated."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.q_norm = RMSNorm(dim // num_heads)
        self.k_norm = RMSNorm(dim // num_heads)

    def forward(self, x: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        # The published weights interleave q, k and v channel by channel: (head, channel, which).
        qkv = self.qkv(x).unflatten(-1, (self.num_heads, -1, 3))  # (B, N, H, d, 3)
        q, k, v = qkv.transpose(1, 2).unbind(-1)  # 3 x (B, H, N, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q.to(v.dtype), k.to(v.dtype), v
