"""Feed-forward layers and modulation of the diffusion transformers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def gated_width(hidden_dim: int, multiple_of: int = 256) -> int:
    """Inner width of a gated MLP: two thirds of ``hidden_dim``, rounded up to a multiple (LLaMA's rule)."""
    return -(-int(2 * hidden_dim / 3) // multiple_of) * multiple_of


class ChannelLastConv1d(nn.Conv1d):
    """Convolution along tokens, ``(B, N, D_in)`` to ``(B, N', D_out)``.

    Its constructor is that of `nn.Conv1d`, because peft builds an adapter's convolutions with the same class.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


def same_length(in_dim: int, out_dim: int, kernel_size: int, bias: bool = True) -> ChannelLastConv1d:
    """Returns a convolution along tokens that keeps their number; ``kernel_size`` is odd."""
    return ChannelLastConv1d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=bias)


class MLP(nn.Module):
    """SwiGLU feed-forward (https://arxiv.org/abs/2002.05202), on each token separately."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        width = gated_width(hidden_dim)
        self.w1: nn.Module = nn.Linear(dim, width, bias=False)
        self.w2: nn.Module = nn.Linear(width, dim, bias=False)
        self.w3: nn.Module = nn.Linear(dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class ConvMLP(MLP):
    """SwiGLU feed-forward with convolutions over neighbouring tokens."""

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int) -> None:
        nn.Module.__init__(self)
        width = gated_width(hidden_dim)
        self.w1 = same_length(dim, width, kernel_size, bias=False)
        self.w2 = same_length(width, dim, kernel_size, bias=False)
        self.w3 = same_length(dim, width, kernel_size, bias=False)


class Modulation(nn.Sequential):
    """Linear map from the activated condition to shifts, scales and gates (adaLN, https://arxiv.org/abs/2212.09748).

    The published weights are at index 1, after a SiLU. All blocks get the same condition, so the SiLU is
    applied once outside, and index 0 is the identity.
    """

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__(nn.Identity(), nn.Linear(dim, parts * dim))
        self.parts = parts

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        return super().forward(input).chunk(self.parts, dim=-1)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of ``x (B, N, D)`` in float32, then scale and shift; returned in the scale's dtype."""
    normalised = F.layer_norm(x.float(), x.shape[-1:])
    return (normalised * (1 + scale) + shift).to(scale.dtype)
