"""What the transformer is conditioned on: the features of one request."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Everything that the encoders say about one video and its texts, float32, no batch axis."""

    clip_features: Tensor  # (V, Dc) MetaCLIP, one per picture
    sync_features: Tensor  # (S, Ds) Synchformer
    text_features: Tensor  # (77, Dt) MetaCLIP tokens of the caption
    t5_features: Tensor  # (77, D5) T5 tokens of the detailed description

    def batched(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four in the transformer's order, each with a batch axis of one."""
        return (
            self.clip_features[None],
            self.sync_features[None],
            self.text_features[None],
            self.t5_features[None],
        )
