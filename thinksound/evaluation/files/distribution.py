"""Metrics on the classes of an audio classifier: KL divergence from the reference, and inception score."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError


def kl_divergence(
    generated_logits: Tensor,
    reference_logits: Tensor,
    activation: Literal["softmax", "sigmoid"] = "softmax",
) -> float:
    """Mean over pairs of KL(reference, generated) between their class distributions, in nats.

    generated_logits, reference_logits: ``(N, K)``; row i of both belongs to the same video.
    activation: ``softmax`` treats the classes as exclusive: 0 for equal rows, never below. ``sigmoid`` is the
        sum of p log(p / q) over independent classes, as the field's programs compute it. Without the
        complements of the classes it is no true divergence and can be below 0.
    """
    assert generated_logits.shape == reference_logits.shape and generated_logits.ndim == 2
    generated, reference = generated_logits.double(), reference_logits.double()
    if activation == "softmax":
        log_q, log_p = F.log_softmax(generated, dim=-1), F.log_softmax(reference, dim=-1)
    else:
        log_q, log_p = F.logsigmoid(generated), F.logsigmoid(reference)
    return float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())


def inception_score(logits: Tensor, splits: int = 1, seed: int = 0) -> tuple[float, float]:
    """The inception score, 1 to K: high if each clip is classified with confidence and clips vary.

    Salimans et al., https://arxiv.org/abs/1606.03498: the exponential of the mean divergence of a clip's
    classes from those of all clips.

    logits: ``(N, K)``.
    splits: parts that are scored separately, of at least 2 clips; the field uses 10. Smaller parts score
        lower, so scores of other numbers of clips are not comparable.
    seed: of the random order in which clips are assigned to the parts.
    Returns the mean over the parts and their standard deviation.
    Raises InputError for fewer than 2 clips in a part.
    """
    count = len(logits)
    if count < 2 * splits:
        raise InputError(
            f"an inception score of {count} clips in {splits} parts; give 2 clips to a part or more"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    scores = []
    for part in torch.tensor_split(logits.double()[order.to(logits.device)], splits):
        log_p = F.log_softmax(part, dim=-1)
        log_mean = torch.logsumexp(log_p, dim=0) - math.log(len(part))
        scores.append((log_p.exp() * (log_p - log_mean)).sum(dim=-1).mean().exp())
    all_scores = torch.stack(scores)
    return float(all_scores.mean()), float(all_scores.std(correction=0))
