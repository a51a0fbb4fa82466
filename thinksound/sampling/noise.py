"""The noise that sampling starts from."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_noise(seed: int, channels: int, latent_length: int, channels_last: bool = False) -> Tensor:
    """Draw standard normal noise ``(1, C, T)`` float32, on the CPU so that a seed gives the same everywhere.

    The values are those of ``torch.manual_seed(seed)`` followed by ``torch.randn(1, C, T)``, or with
    ``channels_last`` by ``torch.randn(1, T, C)``, transposed.
    """
    generator = torch.Generator().manual_seed(seed)
    if channels_last:
        return torch.randn(1, latent_length, channels, generator=generator).transpose(1, 2)
    return torch.randn(1, channels, latent_length, generator=generator)
