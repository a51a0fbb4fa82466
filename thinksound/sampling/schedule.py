"""The time grid of rectified flow: from 1 (noise) to 0 (sound)."""

from __future__ import annotations

import torch
from torch import Tensor


def flow_times(steps: int) -> Tensor:
    """``steps + 1`` equally spaced times from 1 to 0, float32 on the CPU."""
    return torch.linspace(1, 0, steps + 1)


def turned_flow_times(steps: int) -> Tensor:
    """The same grid for networks that were trained in time from 0 to 1, float64 on the CPU.

    One minus a float32 time between 0 and 1 has too many digits for float32. In float64 it is exact, and
    turning it round again gives the times of the published sampler to the last bit; with frequencies of
    10000 radians a last bit matters.
    """
    return 1 - torch.linspace(0, 1, steps + 1).double()
