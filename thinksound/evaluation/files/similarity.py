"""Similarity of embeddings of different modalities in a shared space."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def paired_cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine similarity, -1 to 1, of row i of ``first (N, D)`` and row i of ``second (N, D)``.

    The rows are of sound and text, or sound and images, from encoders that were trained to share a space.
    """
    assert first.shape == second.shape and first.ndim == 2
    return float(F.cosine_similarity(first.double(), second.double(), dim=-1).mean())
