"""All of Synchformer: both towers, and the head that classifies the offset of the sound from their features.

Synchformer, https://arxiv.org/abs/2401.16423, section 3. Only the evaluation uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import attend
from .synchformer import VisualTower, split_heads
from .synchformer_audio import AudioTower, OffsetConfig


class HeadAttention(nn.Module):
    """Self-attention with an output projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.key = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        projected = (self.query(x), self.key(x), self.value(x))
        return self.proj(attend(*(split_heads(tokens, self.num_heads) for tokens in projected)))


class HeadBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.ln2 = nn.LayerNorm(dim)
        self.attn = HeadAttention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Positions(nn.Module):
    """Learned position embeddings."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(torch.zeros(1, length, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_emb


class OffsetHead(nn.Module):
    """A transformer over both sequences, each after a special token; the first token gives the logits."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        dim = config.towers.embed_dim
        length = 2 + config.segments * (config.towers.time_steps + config.moments)
        self.OFF_tok = nn.Parameter(torch.zeros(1, 1, dim))
        self.MOD_tok = nn.Parameter(torch.zeros(1, 1, dim))
        self.vis_in_lnorm = nn.LayerNorm(dim)
        self.aud_in_lnorm = nn.LayerNorm(dim)
        self.pos_emb_cfg = Positions(length, dim)
        self.blocks = nn.Sequential(*(HeadBlock(dim, config.head_heads) for _ in range(config.head_depth)))
        self.ln_f = nn.LayerNorm(dim)
        self.off_head = nn.Linear(dim, config.offsets)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Features ``visual (B, Nv, D)`` and ``audio (B, Na, D)`` to logits ``(B, offsets)``."""
        count = len(visual)
        first, second = self.OFF_tok.expand(count, -1, -1), self.MOD_tok.expand(count, -1, -1)
        x = torch.cat([first, self.vis_in_lnorm(visual), second, self.aud_in_lnorm(audio)], dim=1)
        x = self.blocks(self.pos_emb_cfg(x))
        return self.off_head(self.ln_f(x[:, 0]))


class SynchformerOffset(nn.Module):
    """Both towers and the head; `forward` runs only the head, on features from the towers."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.towers.embed_dim
        self.vfeat_extractor = VisualTower(config.towers)
        self.afeat_extractor = AudioTower(config)
        self.vproj = nn.Linear(dim, dim)
        self.aproj = nn.Linear(dim, dim)
        self.transformer = OffsetHead(config)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Returns logits ``(B, 21)`` of the offsets.

        Args:
            visual: ``(B, 14, 8, D)`` from ``vfeat_extractor``.
            audio: ``(B, 14, 6, D)`` from ``afeat_extractor``, of the same segments.
        """
        assert visual.shape[1] == audio.shape[1] == self.config.segments, (visual.shape, audio.shape)
        return self.transformer(self.vproj(visual.flatten(1, 2)), self.aproj(audio.flatten(1, 2)))
