"""The flow-matching multimodal diffusion transformer of ThinkSound.

Source: ThinkSound, https://arxiv.org/abs/2506.21448, section 3.3. Besides `FlowTransformer`:

* The two texts are concatenated to one sequence, with MetaCLIP tokens zero-padded to T5's width. The pooled
  text condition is the mean of all MetaCLIP rows, including padding: the published configuration does not
  use the encoder's own pooled vector.
* Time runs from 1 (noise) to 0 (sound).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .flow import Conditions, FlowConfig, FlowTransformer


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig(FlowConfig):
    """Configuration of ThinkSound's flow-matching multimodal diffusion transformer."""

    latent_dim: int = 64
    clip_text_dim: int = 1024  # width of a MetaCLIP text token
    text_dim: int = 2048  # width of a T5 token; MetaCLIP tokens are zero-padded to it
    hidden_dim: int = 1024
    depth: int = 21
    fused_depth: int = 14
    num_heads: int = 16
    audio_kernel_size: int = 3
    output_sees_sync: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_text_dim > self.text_dim:
            raise InputError(f"clip_text_dim {self.clip_text_dim} is larger than text_dim {self.text_dim}")


class MMDiT(FlowTransformer):
    """ThinkSound's transformer, conditioned on frames, synchronisation, a caption and a chain of thought."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config, pooled_text_dim=config.clip_text_dim)
        self.config = config
        self.empty_string_feat = nn.Parameter(torch.zeros(config.text_length, config.clip_text_dim))
        self.empty_t5_feat = nn.Parameter(torch.zeros(config.text_length, config.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, config.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, config.sync_dim))

    def empty_features(self, clip_length: int, sync_length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the learned null features, in `project`'s order, each with a batch of one."""
        return (
            self.empty_clip_feat.expand(1, clip_length, -1),
            self.empty_sync_feat.expand(1, sync_length, -1),
            self.empty_string_feat[None],
            self.empty_t5_feat[None],
        )

    def project(
        self,
        clip_features: Tensor,
        sync_features: Tensor,
        text_features: Tensor,
        t5_features: Tensor,
        latent_length: int,
    ) -> Conditions:
        """Turn encoder features into the network's conditions, once per request.

        Args:
            clip_features: MetaCLIP features of frames ``(B, V, clip_dim)``.
            sync_features: Synchformer features ``(B, S, sync_dim)``, S a multiple of 8.
            text_features: MetaCLIP tokens of the caption ``(B, N, clip_text_dim)``.
            t5_features: T5 tokens of the chain of thought ``(B, N, text_dim)``.
            latent_length: T, latent frames to generate.
        """
        text_features, t5_features = text_features.to(self.dtype), t5_features.to(self.dtype)
        padded = F.pad(text_features, (0, self.config.text_dim - self.config.clip_text_dim))
        text = self.text_input_proj(torch.cat([padded, t5_features], dim=1))  # (B, 2N, D)
        return self._conditions(clip_features, sync_features, text, text_features.mean(dim=1), latent_length)
