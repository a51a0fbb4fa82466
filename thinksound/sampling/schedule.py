"""The time grid of rectified flow: from 1 (noise) to 0 (sound)."""

from __future__ import annotations

import torch
from torch import Tensor


def flow_times(steps: int) -> Tensor:
    """``steps + 1`` equally spaced times from 1 to 0, float32 on the CPU."""
    return torch.linspace(1, 0, steps + 1)
