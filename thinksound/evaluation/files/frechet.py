"""The Fréchet distance between normal distributions that are fitted to two sets of embeddings.

Heusel et al., https://arxiv.org/abs/1706.08500; for sound Kilgour et al., https://arxiv.org/abs/1812.08466.
The covariances are never formed. With centred samples A and B (one per row, divided by the root of their
count minus one), the trace of the square root of the product of the covariances AᵀA and BᵀB is the sum of
the singular values of A Bᵀ. This stays exact if the covariances are singular, which fewer samples than
dimensions cause, and if the usual matrix square root becomes complex.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError


def frechet_distance(generated: Tensor, reference: Tensor) -> float:
    """Squared Fréchet distance, 0 for equal sets; symmetric.

    generated: ``(N, D)``; reference: ``(M, D)``; both of at least 2 finite rows.
    Raises InputError for a single row, which has no covariance.
    """
    assert generated.ndim == reference.ndim == 2 and generated.shape[1] == reference.shape[1], (
        tuple(generated.shape),
        tuple(reference.shape),
    )
    generated, reference = generated.double(), reference.double()
    first, second = _centred(generated), _centred(reference)
    means = (generated.mean(dim=0) - reference.mean(dim=0)).square().sum()
    shared = torch.linalg.svdvals(first @ second.T).sum()
    distance = means + first.square().sum() + second.square().sum() - 2 * shared
    return max(0.0, float(distance))  # rounding leaves -1e-15 for equal sets


def _centred(samples: Tensor) -> Tensor:
    """A matrix F ``(min(N, D), D)`` whose FᵀF is the covariance of ``samples (N, D)``."""
    count = len(samples)
    if count < 2:
        raise InputError(f"a Fréchet distance of {count} clip; at least 2 are needed on each side")
    centred = (samples - samples.mean(dim=0)) / (count - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R
