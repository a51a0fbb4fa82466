"""The flow-matching transformer of MMAudio, versions 1 and 2.

Source: MMAudio, https://arxiv.org/abs/2412.15322, section 3.3. Beside `FlowTransformer`:

* One text of CLIP tokens. It is pooled, like the pictures, after its projection: the mean of all
  rows, padding included.
* Synchronisation does not modulate the output block. The authors call that a slip; the published
  weights were trained with it.
* The latents it works on are normalised by a mean and a spread that are stored with the weights.

Where the original runs in bfloat16, so do its time and frequencies; for version 2, whose angles reach
10000 radians, that is another embedding than the trained one. Here both are float32 in every dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .flow import Conditions, FlowTransformer
from .mmaudio_config import MMAudioConfig


class MMAudioFlow(FlowTransformer):
    """MMAudio's velocity, which leads from noise to sound.

    Time runs from 0 (noise) to 1 (sound), as published; `MMDiT`'s runs from 1 to 0. Who samples turns it
    round (`thinksound.sampling.guidance.turned`).
    """

    latent_mean: Tensor  # (1, 1, C)
    latent_std: Tensor  # (1, 1, C)

    def __init__(self, config: MMAudioConfig) -> None:
        super().__init__(config, pooled_text_dim=config.hidden_dim)
        self.config = config
        self.empty_string_feat = nn.Parameter(torch.zeros(config.text_length, config.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, config.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, config.sync_dim))
        self.register_buffer("latent_mean", torch.zeros(1, 1, config.latent_dim))
        self.register_buffer("latent_std", torch.ones(1, 1, config.latent_dim))

    def empty_features(self, clip_length: int, sync_length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The learned stand-ins for absent conditions, in `project`'s order, each with a batch of one.

        Text alone takes those of pictures and synchronisation, a still image that of synchronisation. A
        negative text, "" too, is encoded like any other: the last one is for those who have no encoder.
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
            clip_features: CLIP pictures ``(B, V, clip_dim)``, each of unit length.
            sync_features: Synchformer features ``(B, S, sync_dim)``, S a multiple of 8.
            text_features: CLIP tokens ``(B, N, text_dim)``, each of unit length.
            latent_length: T, latent frames to generate.
        """
        text = self.text_input_proj(text_features.to(self.dtype))  # (B, N, D)
        return self._conditions(clip_features, sync_features, text, text.mean(dim=1), latent_length)

    def unnormalised(self, latents: Tensor) -> Tensor:
        """The VAE's latents of this network's ``latents (B, C, T)``."""
        return latents * self.latent_std.transpose(1, 2) + self.latent_mean.transpose(1, 2)
