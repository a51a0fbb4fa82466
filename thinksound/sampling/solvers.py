"""Solvers of the flow's differential equation, and their time grids.

Time runs from 1 (noise) to 0 (sound).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

# Takes latents (B, C, T) and a flow time; returns the velocity (B, C, T).
Velocity = Callable[[Tensor, float], Tensor]


def flow_times(steps: int) -> Tensor:
    """Return ``steps + 1`` equally spaced times from 1 to 0, float32 on the CPU."""
    return torch.linspace(1, 0, steps + 1)


def turned_flow_times(steps: int) -> Tensor:
    """Return the grid for networks trained with time from 0 to 1, as times from 1 to 0, float64 on the CPU.

    Float32 cannot hold one minus a float32 time between 0 and 1 exactly; float64 can. One minus these times
    gives the times of the published sampler bit for bit, which matters with frequencies of 10000 radians.
    """
    return 1 - torch.linspace(0, 1, steps + 1).double()


def euler(velocity: Velocity, latents: Tensor, times: Tensor, on_step: Callable[[int], None]) -> Tensor:
    """Solve with Euler's method: first order, one velocity per step. Returns latents ``(B, C, T)``.

    Args:
        velocity: the right-hand side.
        latents: the state at ``times[0]``, ``(B, C, T)``.
        times: decreasing grid.
        on_step: called after each step with the number of finished steps.
    """
    for step, (time, next_time) in enumerate(itertools.pairwise(times), start=1):
        latents = latents + (next_time - time).item() * velocity(latents, time.item())
        on_step(step)
    return latents
