"""Solvers of the flow's differential equation, and the times at which they look at it.

Time runs from 1 (noise) to 0 (sound).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

# Velocity (B, C, T) at latents (B, C, T) and a flow time.
Velocity = Callable[[Tensor, float], Tensor]


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


def euler(velocity: Velocity, latents: Tensor, times: Tensor, on_step: Callable[[int], None]) -> Tensor:
    """First order: one velocity per step.

    Args:
        velocity: the right-hand side.
        latents: the state at ``times[0]``, ``(B, C, T)``.
        times: decreasing grid.
        on_step: called with the number of finished steps after each one.
    """
    for step, (time, next_time) in enumerate(itertools.pairwise(times), start=1):
        latents = latents + (next_time - time).item() * velocity(latents, time.item())
        on_step(step)
    return latents
