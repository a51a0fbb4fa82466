"""How well embeddings of different modalities agree where they share a space."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def paired_cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine of row i of ``first (N, D)`` with row i of ``second (N, D)``: -1 to 1.

    Sound against text, or sound against pictures, from encoders that were trained to share a space.
    """
    assert first.shape == second.shape and first.ndim == 2
    return float(F.cosine_similarity(first.double(), second.double(), dim=-1).mean())
