"""The visual tower of Synchformer: 0.64 s of video to 8 features that represent the time of events.

Source: Synchformer, https://arxiv.org/abs/2401.16423, section 3; its backbone is MotionFormer
(https://arxiv.org/abs/2106.05392) with divided space-time attention
(TimeSformer, https://arxiv.org/abs/2102.05095).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from .attention import attend


@dataclass(frozen=True)
class SynchformerConfig:
    """Configuration of Synchformer's visual tower."""

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 224
    patch_size: int = 16
    patch_frames: int = 2
    segment_frames: int = 16

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise InputError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")

    @property
    def patches(self) -> int:
        """Patches of one frame."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def time_steps(self) -> int:
        """Features per segment."""
        return self.segment_frames // self.patch_frames


SYNC_FPS = 25  # frames per second
SYNC_SEGMENT = 16  # frames in one segment: 0.64 s
SYNC_STRIDE = 8  # frames between the starts of two segments
SYNC_FEATURES_PER_SEGMENT = 8  # one feature for every two frames


def sync_segment_count(frames: int) -> int:
    """Returns how many overlapping segments of 16 frames fit into ``frames``."""
    return (frames - SYNC_SEGMENT) // SYNC_STRIDE + 1


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32, returned in the dtype of the weights."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        out = F.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return out.to(self.weight.dtype)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, N, D)`` to ``(B, H, N, d)``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class DividedAttention(nn.Module):
    """Attention within groups of patches and the class token; the class token attends to every patch."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, groups: str, **sizes: int) -> Tensor:
        """Attention over ``x (B, 1 + f*n, D)``, class token first; ``groups`` is an einops pattern.

        Tokens are ordered by time f, then place n. ``"(b n) f"`` attends along time, ``"(b f) n"`` within one
        frame.
        """
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        class_out = self.attend(q[:, :1], k, v)

        def group(tokens: Tensor) -> Tensor:
            return rearrange(tokens[:, 1:], f"b (f n) d -> {groups} d", **sizes)

        grouped_q, grouped_k, grouped_v = group(q), group(k), group(v)
        repeats = len(grouped_k) // len(k)
        grouped_k = torch.cat([k[:, :1].repeat_interleave(repeats, dim=0), grouped_k], dim=1)
        grouped_v = torch.cat([v[:, :1].repeat_interleave(repeats, dim=0), grouped_v], dim=1)
        out = self.attend(grouped_q, grouped_k, grouped_v)
        out = rearrange(out, f"{groups} d -> b (f n) d", b=len(x), **sizes)
        return self.proj(torch.cat([class_out, out], dim=1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(*(split_heads(tokens, self.num_heads) for tokens in (q, k, v)))


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DividedBlock(nn.Module):
    """Attention along time, attention within each frame, feed-forward."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        self.sizes = {"n": config.patches, "f": config.time_steps}
        self.norm1 = LayerNorm(config.embed_dim)
        self.attn = DividedAttention(config.embed_dim, config.num_heads)
        self.timeattn = DividedAttention(config.embed_dim, config.num_heads)
        self.norm2 = LayerNorm(config.embed_dim)
        self.mlp = MLP(config.embed_dim, config.embed_dim * config.mlp_ratio)
        self.norm3 = LayerNorm(config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.timeattn(self.norm3(x), "(b n) f", **self.sizes)
        x = x + self.attn(self.norm1(x), "(b f) n", **self.sizes)
        return x + self.mlp(self.norm2(x))


class ClassTokenPooling(nn.Module):
    """A pre-norm transformer layer whose class token pools a set of patches, such as those of one frame.

    Only the class token is returned, so only its query and its feed-forward are computed.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.self_attn = nn.MultiheadAttention(
            dim, num_heads
        )  # holds the weights under their published names
        self.linear1 = nn.Linear(dim, dim * mlp_ratio)
        self.linear2 = nn.Linear(dim * mlp_ratio, dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)

    def forward(self, patches: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, D)``."""
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        normed = self.norm1(x)
        weight, bias = self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        dim = x.shape[-1]
        q = F.linear(normed[:, :1], weight[:dim], bias[:dim])
        k, v = F.linear(normed, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        attended = attend(*(split_heads(tokens, self.num_heads) for tokens in (q, k, v)))
        out = x[:, :1] + self.self_attn.out_proj(attended)
        out = out + self.linear2(F.gelu(self.linear1(self.norm2(out))))
        return out[:, 0]


class PatchEmbedding2d(nn.Module):
    """In the checkpoint but not used: videos are cut into 3-D patches."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)


class PatchEmbedding3d(nn.Module):
    """Pixels ``(B, 3, F, H, W)`` to patch tokens ``(B, f*n, D)``, ordered by time, then place."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        size = (config.patch_frames, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.embed_dim, size, size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisualTower(nn.Module):
    """MotionFormer with pooling at each time: segments ``(B, F, 3, H, W)`` to features ``(B, f, D)``."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 1, dim))
        self.temp_embed = nn.Parameter(torch.zeros(1, config.time_steps, dim))
        self.patch_embed = PatchEmbedding2d(config)
        self.patch_embed_3d = PatchEmbedding3d(config)
        self.blocks = nn.ModuleList(DividedBlock(config) for _ in range(config.depth))
        self.norm = LayerNorm(dim)
        self.spatial_attn_agg = ClassTokenPooling(dim, config.num_heads, config.mlp_ratio)

    def forward(self, segments: Tensor) -> Tensor:
        patches = self.embed(segments.flatten(0, 1))  # (B*f, n, D)
        return self.encode(patches.unflatten(0, (-1, self.config.time_steps)))

    def embed(self, pixels: Tensor) -> Tensor:
        """Frames ``(P, 3, H, W)`` to patch tokens ``(P / 2, n, D)`` float32: one set per two frames.

        They have no position embeddings yet, so overlapping segments can share them.
        """
        pairs = pixels.unflatten(0, (-1, self.config.patch_frames)).transpose(1, 2)  # (P / 2, 3, 2, H, W)
        tokens: Tensor = self.patch_embed_3d(pairs.to(self.patch_embed_3d.proj.weight.dtype))
        return tokens.float()

    def encode(self, patches: Tensor) -> Tensor:
        """Patch tokens of segments ``(B, f, n, D)`` to features ``(B, f, D)``."""
        patches = patches.flatten(1, 2)  # (B, f*n, D)
        place = self.pos_embed[:, 1:].repeat(1, self.config.time_steps, 1)
        time = self.temp_embed.repeat_interleave(self.config.patches, dim=1)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        x = torch.cat([first, patches + (place + time)], dim=1)  # (B, 1 + f*n, D) float32
        for block in self.blocks:
            x = block(x)
        pictures = rearrange(self.norm(x[:, 1:]), "b (f n) d -> (b f) n d", f=self.config.time_steps)
        features: Tensor = self.spatial_attn_agg(pictures)
        return features.unflatten(0, (len(patches), -1))


class Synchformer(nn.Module):
    """The part of Synchformer that generation uses; `synchformer_offset` has all of it."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        self.vfeat_extractor = VisualTower(config)

    def forward(self, segments: Tensor) -> Tensor:
        """Segments ``(B, 16, 3, 224, 224)``, pixels in -1..1, to features ``(B, 8, D)``."""
        return self.vfeat_extractor(segments)
