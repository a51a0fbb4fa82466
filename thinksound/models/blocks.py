"""Blocks of the diffusion transformers: for one stream, for three joined streams, and for the output.

The residual stream keeps its dtype (float32 in the sampler); matrix products run in the dtype of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import QKVProjection, attend
from .layers import MLP, ConvMLP, Modulation, modulated_norm, same_length


class Gates(NamedTuple):
    """Modulation of the second half of a block."""

    attention: Tensor
    shift: Tensor
    scale: Tensor
    feedforward: Tensor


class StreamBlock(nn.Module):
    """Modulated attention and feed-forward of one token stream; a "fused" block if used alone.

    ``kernel_size`` 1 gives linear layers (for text), a larger one convolutions along the tokens.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, kernel_size: int) -> None:
        super().__init__()
        self.attn = QKVProjection(dim, num_heads)
        self.linear1: nn.Module
        self.ffn: nn.Module
        if kernel_size == 1:
            self.linear1 = nn.Linear(dim, dim)
            self.ffn = MLP(dim, int(dim * mlp_ratio))
        else:
            self.linear1 = same_length(dim, dim, kernel_size)
            self.ffn = ConvMLP(dim, int(dim * mlp_ratio), kernel_size)
        self.adaLN_modulation = Modulation(dim, 6)

    def queries_keys_values(
        self, x: Tensor, condition: Tensor, rotary: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Gates]:
        """First half: queries, keys and values of ``x (B, N, D)`` under ``condition (B, 1 or N, D)``."""
        shift, scale, *gates = self.adaLN_modulation(condition)
        return self.attn(modulated_norm(x, shift, scale), rotary), Gates(*gates)

    def update(self, x: Tensor, attended: Tensor, gates: Gates) -> Tensor:
        """Second half: add the results of attention and of the feed-forward to ``x``."""
        x = x + self.linear1(attended) * gates.attention
        return x + self.ffn(modulated_norm(x, gates.shift, gates.scale)) * gates.feedforward

    def forward(self, x: Tensor, condition: Tensor, rotary: Tensor | None) -> Tensor:
        qkv, gates = self.queries_keys_values(x, condition, rotary)
        return self.update(x, attend(*qkv), gates)


class ReadOnlyStream(nn.Module):
    """A stream of the last joint block: latents attend to it, and it is not updated."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = QKVProjection(dim, num_heads)
        self.adaLN_modulation = Modulation(dim, 2)

    def queries_keys_values(
        self, x: Tensor, condition: Tensor, rotary: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], None]:
        shift, scale = self.adaLN_modulation(condition)
        return self.attn(modulated_norm(x, shift, scale), rotary), None

    def update(self, x: Tensor, attended: Tensor, gates: None) -> Tensor:
        return x


class JointBlock(nn.Module):
    """Joint attention of latents, frames and text, each with its own weights (https://arxiv.org/abs/2403.03206)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, kernel_size: int, last: bool) -> None:
        super().__init__()
        self.latent_block = StreamBlock(dim, num_heads, mlp_ratio, kernel_size)
        self.clip_block: StreamBlock | ReadOnlyStream
        self.text_block: StreamBlock | ReadOnlyStream
        if last:
            self.clip_block = ReadOnlyStream(dim, num_heads)
            self.text_block = ReadOnlyStream(dim, num_heads)
        else:
            self.clip_block = StreamBlock(dim, num_heads, mlp_ratio, kernel_size)
            self.text_block = StreamBlock(dim, num_heads, mlp_ratio, kernel_size=1)

    def forward(
        self,
        streams: tuple[Tensor, Tensor, Tensor],  # latents (B, T, D), frames (B, V, D), text (B, N, D)
        conditions: tuple[Tensor, Tensor, Tensor],  # (B, T, D), (B, 1, D), (B, 1, D)
        rotaries: tuple[Tensor, Tensor, None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        blocks = (self.latent_block, self.clip_block, self.text_block)
        halves = [
            block.queries_keys_values(x, condition, rotary)
            for block, x, condition, rotary in zip(blocks, streams, conditions, rotaries, strict=True)
        ]
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*(qkv for qkv, _ in halves), strict=True))
        attended = attend(q, k, v).split([x.shape[1] for x in streams], dim=1)
        latents, clip, text = (
            block.update(x, part, gates)  # type: ignore[arg-type]
            for block, x, part, (_, gates) in zip(blocks, streams, attended, halves, strict=True)
        )
        return latents, clip, text


class FinalBlock(nn.Module):
    """Tokens to velocity: ``(B, T, D)`` to ``(B, T, C)``."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.adaLN_modulation = Modulation(dim, 2)
        self.conv = same_length(dim, out_dim, kernel_size=7)

    def forward(self, latents: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)
        return self.conv(modulated_norm(latents, shift, scale))
