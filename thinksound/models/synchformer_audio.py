"""The audio tower of Synchformer: the spectrogram of 0.64 s of sound to 6 features.

Synchformer, https://arxiv.org/abs/2401.16423, section 3; its backbone is the Audio Spectrogram Transformer
(https://arxiv.org/abs/2104.01778). Only the evaluation uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .synchformer import ClassTokenPooling, SynchformerConfig, split_heads

_EPS = 1e-12  # of the layer norms


@dataclass(frozen=True)
class OffsetConfig:
    """Configuration of all of Synchformer: two towers of one size, and the offset head."""

    towers: SynchformerConfig = field(default_factory=SynchformerConfig)
    mel_bins: int = 128
    mel_frames: int = 66  # of one segment's spectrogram
    audio_patch_size: int = 16
    audio_patch_stride: int = 10
    head_depth: int = 3
    head_heads: int = 8
    segments: int = 14  # compared at once
    offsets: int = 21  # classes, evenly spaced from -2 to 2 s

    @property
    def bands(self) -> int:
        """Patches of a spectrogram along frequency."""
        return (self.mel_bins - self.audio_patch_size) // self.audio_patch_stride + 1

    @property
    def moments(self) -> int:
        """Patches of a spectrogram along time, and so features per segment."""
        return (self.mel_frames - self.audio_patch_size) // self.audio_patch_stride + 1


class Dense(nn.Module):
    """A linear layer with its published name."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class SelfAttention(nn.Module):
    """Self-attention without an output projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        projected = (self.query(x), self.key(x), self.value(x))
        return attend(*(split_heads(tokens, self.num_heads) for tokens in projected))


class ProjectedAttention(nn.Module):
    """Self-attention with an output projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads)
        self.output = Dense(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attention(x))


class SpectrogramLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention = ProjectedAttention(dim, num_heads)
        self.intermediate = Dense(dim, dim * mlp_ratio)
        self.output = Dense(dim * mlp_ratio, dim)
        self.layernorm_before = nn.LayerNorm(dim, eps=_EPS)
        self.layernorm_after = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(F.gelu(self.intermediate(self.layernorm_after(x))))


class SpectrogramPatches(nn.Module):
    """Overlapping patches of spectrograms ``(B, F, M)`` as tokens ``(B, f*m, D)``, lowest band first."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            1, config.towers.embed_dim, config.audio_patch_size, config.audio_patch_stride
        )

    def forward(self, spectrograms: Tensor) -> Tensor:
        return self.projection(spectrograms[:, None]).flatten(2).transpose(1, 2)


class SpectrogramEmbedding(nn.Module):
    """Two class tokens and the patches, with learned position embeddings."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        dim = config.towers.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.bands * config.moments + 2, dim))
        self.patch_embeddings = SpectrogramPatches(config)

    def forward(self, spectrograms: Tensor) -> Tensor:
        patches = self.patch_embeddings(spectrograms)
        first = torch.cat([self.cls_token, self.distillation_token], dim=1).expand(len(patches), -1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embeddings  # (B, 2 + f*m, D)


class SpectrogramEncoder(nn.Module):
    """The stack of layers with its published name."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        towers = config.towers
        self.layer = nn.Sequential(
            *(
                SpectrogramLayer(towers.embed_dim, towers.num_heads, towers.mlp_ratio)
                for _ in range(towers.depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class SpectrogramTransformer(nn.Module):
    """Spectrograms ``(B, F, M)`` to tokens ``(B, 2 + f*m, D)``, two class tokens first."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        self.embeddings = SpectrogramEmbedding(config)
        self.encoder = SpectrogramEncoder(config)
        self.layernorm = nn.LayerNorm(config.towers.embed_dim, eps=_EPS)

    def forward(self, spectrograms: Tensor) -> Tensor:
        return self.layernorm(self.encoder(self.embeddings(spectrograms)))


class AudioTower(nn.Module):
    """Spectrograms of segments ``(B, F, M)`` to features ``(B, m, D)``, pooled over frequency."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        self.bands = config.bands
        towers = config.towers
        self.ast = SpectrogramTransformer(config)
        self.freq_attn_agg = ClassTokenPooling(towers.embed_dim, towers.num_heads, towers.mlp_ratio)

    def forward(self, spectrograms: Tensor) -> Tensor:
        tokens = self.ast(spectrograms)[:, 2:]  # (B, f*m, D)
        moments = tokens.unflatten(1, (self.bands, -1)).transpose(1, 2)  # (B, m, f, D)
        features: Tensor = self.freq_attn_agg(moments.flatten(0, 1))
        return features.unflatten(0, (len(spectrograms), -1))
