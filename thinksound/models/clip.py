"""CLIP: two transformers that map images and texts into one space (arXiv 2103.00020).

Attribute names are those of checkpoints in the layout of Hugging Face. Layers are pre-norm, with biases.
There is no tensor of position ids: an input uses the first rows of the position table.

Results equal those of the transformers library's ``CLIPModel`` bit for bit
(`tests/models/test_text_networks.py`). The network is written out here because that library's import loads
what all its networks need for training and serving: compilers, losses of object detection, distributed
tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import empty_table


def quick_gelu(x: Tensor) -> Tensor:
    """GELU approximated by a sigmoid, with which CLIP was trained."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class TowerConfig:
    """Configuration of one of the two transformers."""

    width: int
    hidden_width: int  # of the MLPs
    depth: int
    num_heads: int
    activation: str
    norm_eps: float

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.num_heads} heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation[:40]!r} is none of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True)
class CLIPConfig:
    """Configuration of the network."""

    vision: TowerConfig
    image_size: int  # pixels on each side
    patch_size: int
    text: TowerConfig
    vocabulary: int
    text_length: int  # rows of the position table
    projection_width: int  # of the common space

    def __post_init__(self) -> None:
        if not 0 < self.patch_size <= self.image_size:
            raise ValueError(f"patches of {self.patch_size} pixels in images of {self.image_size}")


class CLIPAttention(nn.Module):
    """Self-attention over ``(B, N, D)``; ``mask (B, 1, N, N)`` is True where a query may attend to a key."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        shape = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (
            projected.view(shape).transpose(1, 2)  # (B, H, N, d)
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class CLIPMLP(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.width, config.hidden_width)
        self.fc2 = nn.Linear(config.hidden_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPLayer(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, causal)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([CLIPLayer(config) for _ in range(config.depth)])

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask, causal)
        return x


class TextEmbeddings(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.token_embedding = empty_table(config.vocabulary, config.text.width)
        self.position_embedding = empty_table(config.text_length, config.text.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTower(nn.Module):
    """Token ids ``(B, N)`` to states ``(B, N, D)``, with causal attention."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = CLIPEncoder(config.text)
        self.final_layer_norm = nn.LayerNorm(config.text.width, eps=config.text.norm_eps)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask (B, N)`` is 0 for padding, to which no token attends; None if there is no padding."""
        allowed = None
        if mask is not None:
            causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
            allowed = causal & mask.bool()[:, None, None]  # (B, 1, N, N)
        x = self.encoder(self.embeddings(ids), allowed, causal=True)
        return self.final_layer_norm(x)


class VisionEmbeddings(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, size = config.vision.width, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, size, stride=size, bias=False)
        self.position_embedding = empty_table((config.image_size // size) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)  # (B, N - 1, D)
        whole = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class VisionTower(nn.Module):
    """Pixels ``(B, 3, H, W)`` to the state of the whole image ``(B, D)``."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.vision.width, eps=config.vision.norm_eps)
        self.encoder = CLIPEncoder(config.vision)
        self.post_layernorm = nn.LayerNorm(config.vision.width, eps=config.vision.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))  # (B, N, D)
        return self.post_layernorm(x[:, 0])


class CLIP(nn.Module):
    """Both towers, and their projections into the common space."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.text_model = TextTower(config)
        self.vision_model = VisionTower(config)
        self.visual_projection = nn.Linear(config.vision.width, config.projection_width, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.projection_width, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))  # a logarithm; used in training only

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``(B, 3, H, W)`` to projected features ``(B, D)``."""
        return self.visual_projection(self.vision_model(pixels))

    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens ``(B, N)`` to projected features of the whole texts ``(B, D)``.

        They are the features at the first end token, which has the largest id of the vocabulary.
        """
        states = self.text_model(ids, mask)
        ends = ids.argmax(dim=-1)
        return self.text_projection(states[torch.arange(len(ids), device=ids.device), ends])
