"""What the transformer is conditioned on: the features of one request."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Everything that the encoders say about one video and its texts, float32, no batch axis."""

    clip_features: Tensor  # (V, Dc) MetaCLIP, one per picture
    sync_features: Tensor  # (S, Ds) Synchformer
    text_features: Tensor  # (77, Dt) MetaCLIP tokens of the caption
    t5_features: Tensor  # (77, D5) T5 tokens of the detailed description

    def to(self, device: torch.device | str) -> Features:
        """The same features on ``device``."""
        return Features(
            clip_features=self.clip_features.to(device),
            sync_features=self.sync_features.to(device),
            text_features=self.text_features.to(device),
            t5_features=self.t5_features.to(device),
        )
