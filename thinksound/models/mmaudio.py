"""The flow-matching transformer of MMAudio, versions 1 and 2, and its five published configurations.

Source: MMAudio, https://arxiv.org/abs/2412.15322, section 3.3. Besides `FlowTransformer`:

* It has one text of CLIP tokens. Like the frames, it is pooled after its projection: by the mean of all rows,
  including padding.
* Synchronisation does not modulate the output block. The authors call this a mistake, but the published
  weights were trained with it.
* Latents are normalised by a mean and a standard deviation that are stored with the weights.

If the original runs in bfloat16, so do its flow time and frequencies. For version 2, whose angles reach 10000
radians, this gives another embedding than in training. Here both are always float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .flow import Conditions, FlowConfig, FlowTransformer


@dataclass(frozen=True, kw_only=True)
class MMAudioConfig(FlowConfig):
    """Configuration of MMAudio's transformer; the defaults are those of the large network, version 2."""

    latent_dim: int = 40  # 20 at 16 kHz
    text_dim: int = 1024  # width of a CLIP text token
    hidden_dim: int = 896
    depth: int = 21
    fused_depth: int = 14
    num_heads: int = 14
    audio_kernel_size: int = 7
    output_sees_sync: bool = False


LARGE_44K_V2 = MMAudioConfig()
LARGE_44K = replace(
    LARGE_44K_V2, input_activation="selu", token_activation=False, time_dim=256, time_scale=1.0
)
MEDIUM_44K = replace(LARGE_44K, depth=12, fused_depth=8)
SMALL_44K = replace(MEDIUM_44K, hidden_dim=448, num_heads=7)
SMALL_16K = replace(SMALL_44K, latent_dim=20)


class MMAudioFlow(FlowTransformer):
    """MMAudio's transformer.

    In `forward`, time runs from 0 (noise) to 1 (sound), as published; `velocity` reverses it.
    """

    latent_mean: Tensor  # (1, 1, C)
    latent_std: Tensor  # (1, 1, C)
    empty_string_feat: Tensor  # (N, text_dim)

    def __init__(self, config: MMAudioConfig) -> None:
        super().__init__(config, pooled_text_dim=config.hidden_dim)
        self.config = config
        # A buffer, not a parameter: it is CLIP's encoding of "", which training must not change.
        self.register_buffer("empty_string_feat", torch.zeros(config.text_length, config.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, config.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, config.sync_dim))
        self.register_buffer("latent_mean", torch.zeros(1, 1, config.latent_dim))
        self.register_buffer("latent_std", torch.ones(1, 1, config.latent_dim))

    def empty_features(self, clip_length: int, sync_length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the null features, in `project`'s order, each with a batch of one.

        Without a video, those of frames and synchronisation are used; for a still image, that of
        synchronisation. A negative text, even "", is encoded like any other; the text's null feature is for
        callers without an encoder.
        """
        return (
            self.empty_clip_feat.expand(1, clip_length, -1),
            self.empty_sync_feat.expand(1, sync_length, -1),
            self.empty_string_feat[None],
        )

    def project(
        self, clip_features: Tensor, sync_features: Tensor, text_features: Tensor, latent_length: int
    ) -> Conditions:
        """Turn encoder features into the network's conditions, once per request.

        Args:
            clip_features: CLIP features of frames ``(B, V, clip_dim)``, each of unit length.
            sync_features: Synchformer features ``(B, S, sync_dim)``, S a multiple of 8.
            text_features: CLIP tokens ``(B, N, text_dim)``, each of unit length.
            latent_length: T, latent frames to generate.
        """
        text = self.text_input_proj(text_features.to(self.dtype))  # (B, N, D)
        return self._conditions(clip_features, sync_features, text, text.mean(dim=1), latent_length)

    def velocity(self, latents: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """As in `FlowTransformer`; float64 ``times`` give the network exactly the published float32 times."""
        return -self(latents, 1 - times, conditions)

    def normalise_by(self, mean: Tensor, deviation: Tensor) -> None:
        self.latent_mean.copy_(mean.view_as(self.latent_mean))
        self.latent_std.copy_(deviation.view_as(self.latent_std))

    def normalised(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean.transpose(1, 2)) / self.latent_std.transpose(1, 2)

    def unnormalised(self, latents: Tensor) -> Tensor:
        return latents * self.latent_std.transpose(1, 2) + self.latent_mean.transpose(1, 2)
