"""Classifier-free guidance (https://arxiv.org/abs/2207.12598) of a velocity network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .solvers import Velocity


class VelocityNetwork(Protocol):
    """A network that turns features into conditions once, and predicts velocities at times from 1 to 0."""

    @property
    def project(self) -> Callable[..., Any]:
        """Takes features and the number of latent frames; returns conditions."""

    @property
    def velocity(self) -> Callable[..., Tensor]:
        """Takes latents ``(B, C, T)``, times ``(B,)`` and conditions; returns the velocity ``(B, C, T)``."""

    @property
    def empty_features(self) -> Callable[[int, int], tuple[Tensor, ...]]:
        """Takes the numbers of clip and sync features; returns null features in the order of `project`."""


def guided_velocity(
    network: VelocityNetwork,
    features: Sequence[Tensor],
    latent_length: int,
    guidance_scale: float,
    absent: Sequence[Tensor] | None = None,
) -> Velocity:
    """Return the velocity under conditions, extrapolated away from the velocity without them.

    Projects the conditions once. With a scale above 1, the conditional and the unconditional half run as one
    batch.

    Args:
        network: the diffusion transformer.
        features: its conditions in the order of ``project``, each ``(B, N, D)``; clip features first,
            synchronisation features second.
        latent_length: T, the number of latent frames to generate.
        guidance_scale: 1 or less follows the conditions as trained; more exaggerates them.
        absent: features for the unconditional half; by default the network's null features. A negative
            prompt is given here.
    """
    if guidance_scale <= 1:
        conditions = network.project(*features, latent_length)
        return lambda latents, time: network.velocity(latents, _times(latents, time), conditions)

    batch = len(features[0])
    if absent is None:
        absent = network.empty_features(features[0].shape[1], features[1].shape[1])
    both_features = [
        torch.cat([given, nothing.to(given).expand(batch, -1, -1)])
        for given, nothing in zip(features, absent, strict=True)
    ]
    conditions = network.project(*both_features, latent_length)

    def velocity(latents: Tensor, time: float) -> Tensor:
        both = torch.cat([latents, latents])
        conditional, unconditional = network.velocity(both, _times(both, time), conditions).chunk(2)
        return unconditional + (conditional - unconditional) * guidance_scale

    return velocity


def _times(latents: Tensor, time: float) -> Tensor:
    # float64, so that a family whose time runs the other way can compute one minus this time exactly.
    return torch.full((len(latents),), time, dtype=torch.float64, device=latents.device)
