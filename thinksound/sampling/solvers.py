"""Solvers of the flow's differential equation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor

from .guidance import Velocity


def euler(velocity: Velocity, latents: Tensor, times: Tensor, on_step: Callable[[int], None]) -> Tensor:
    """First order: one velocity a step.

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
