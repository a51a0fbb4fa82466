"""The noise that sampling starts from."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_noise(seed: int, channels: int, latent_length: int, channels_last: bool = False) -> Tensor:
    """Standard normal noise ``(1, C, T)``, drawn on the CPU so that a seed means the same everywhere.

    These are the numbers that ``torch.manual_seed(seed)`` followed by ``torch.randn`` gives, for
    ``channels_last`` those of a tensor ``(1, T, C)``.
    """
    generator = torch.Generator().manual_seed(seed)
    if channels_last:
        return torch.randn(1, latent_length, channels, generator=generator).transpose(1, 2)
    return torch.randn(1, channels, latent_length, generator=generator)
