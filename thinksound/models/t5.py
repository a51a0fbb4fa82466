"""The encoder of T5 version 1.1 (arXiv 1910.10683): relative positions, RMS norms, gated GELU, no biases.

Attribute names are those of checkpoints in the layout of Hugging Face. Attention is written out: with the
fused kernel, results differ from the published extractor's by 9e-6 at a tiny size and by 6e-4 at full size.
Attention scores are not divided by the square root of the head width; the published weights were trained so.

The residual stream of a trained T5 exceeds the range of float16. So the output projection of each MLP
computes in float32, and the stream stays in float32: any parameter dtype is safe. With float32 parameters the
result equals that of the transformers library's ``T5EncoderModel`` bit for bit
(`tests/models/test_text_networks.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import empty_table


@dataclass(frozen=True)
class T5Config:
    """Configuration of the encoder."""

    vocabulary: int
    width: int
    head_width: int
    hidden_width: int  # of the gated MLPs
    depth: int
    num_heads: int
    position_buckets: int = 32
    furthest_position: int = 128  # tokens; larger distances share a bucket
    norm_eps: float = 1e-6
    dropout: float = 0.1  # in training only

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError("it has no layers")
        if not 4 <= self.position_buckets < self.furthest_position:
            raise ValueError(
                f"{self.position_buckets} position buckets up to {self.furthest_position} tokens; at least 4 "
                "buckets and more tokens are needed"
            )


def gelu(x: Tensor) -> Tensor:
    """GELU approximated by tanh, in the order of operations of the published T5."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class WideLinear(nn.Linear):
    """A linear layer that computes and returns float32, whatever the dtype of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.float(), self.weight.float())


class RMSNorm(nn.Module):
    """RMS norm computed in float32; returned in the weight's dtype if that is float16 or bfloat16."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(self.weight.dtype)
        return self.weight * x


def position_buckets(length: int, config: T5Config, device: torch.device) -> Tensor:
    """Returns the row in the table of relative positions for each query and key, ``(N, N)``.

    Half of the buckets are for keys after the query. In each half, the first half of the buckets are for
    exact distances, and the rest are logarithmically spaced up to the furthest position.
    """
    positions = torch.arange(length, device=device)
    offset = positions[None] - positions[:, None]  # key minus query
    half = config.position_buckets // 2
    exact = half // 2
    distance = offset.abs()
    scale = math.log(config.furthest_position / exact)
    wide = exact + (torch.log(distance.float() / exact) / scale * (half - exact)).long()
    buckets = torch.where(distance < exact, distance, wide.clamp(max=half - 1))
    return buckets + (offset > 0).long() * half


class T5Attention(nn.Module):
    def __init__(self, config: T5Config, with_positions: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.head_width
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(config.width, inner, bias=False)
        self.v = nn.Linear(config.width, inner, bias=False)
        self.o = nn.Linear(inner, config.width, bias=False)
        if with_positions:
            self.relative_attention_bias = empty_table(config.position_buckets, config.num_heads)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        shape = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))  # (B, H, N, d)
        scores = torch.matmul(q, k.transpose(2, 3)) + positions  # (B, H, N, N)
        if mask is not None:
            scores = scores + mask
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        return self.o(torch.matmul(weights, v).transpose(1, 2).flatten(2))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, with_positions: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, with_positions)
        self.layer_norm = RMSNorm(config.width, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.dropout(self.SelfAttention(self.layer_norm(x), positions, mask))


class GatedMLP(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.width, config.hidden_width, bias=False)
        self.wi_1 = nn.Linear(config.width, config.hidden_width, bias=False)
        self.wo = WideLinear(config.hidden_width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.dropout(gelu(self.wi_0(x)) * self.wi_1(x)))


class MLPLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedMLP(config)
        self.layer_norm = RMSNorm(config.width, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.DenseReluDense(self.layer_norm(x)))


class T5Block(nn.Module):
    def __init__(self, config: T5Config, with_positions: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, with_positions), MLPLayer(config)])

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        x = self.layer[0](x, positions, mask)
        if x.dtype == torch.float16:  # only before the first MLP; after it the stream is float32
            largest = torch.finfo(x.dtype).max
            bound = torch.where(x.isinf().any(), largest - 1000, largest)
            x = x.clamp(-bound, bound)
        return self.layer[1](x)


class T5Stack(nn.Module):
    def __init__(self, config: T5Config, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embeddings
        self.block = nn.ModuleList([T5Block(config, index == 0) for index in range(config.depth)])
        self.final_layer_norm = RMSNorm(config.width, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        x = self.embed_tokens(ids)  # (B, N, D)
        hidden = None
        if mask is not None:
            least = torch.finfo(x.dtype).min
            hidden = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask == 0, least)[:, None, None]
        table = self.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        buckets = position_buckets(ids.shape[1], self.config, ids.device)
        positions = table(buckets).permute(2, 0, 1)[None]  # (1, H, N, N)
        x = self.dropout(x)
        for block in self.block:
            x = block(x, positions, hidden)
        return self.dropout(self.final_layer_norm(x))


class T5Encoder(nn.Module):
    """Token ids ``(B, N)`` to states ``(B, N, D)``."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        # One module with both of its checkpoint names, so that loading and moving cannot separate them.
        self.shared = empty_table(config.vocabulary, config.width)
        self.encoder = T5Stack(config, self.shared)

    @property
    def device(self) -> torch.device:
        return self.shared.weight.device

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask (B, N)`` is 0 for padding, to which no token attends."""
        return self.encoder(ids, mask)
