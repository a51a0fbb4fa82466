"""Classifier-free guidance (https://arxiv.org/abs/2207.12598) around a velocity network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .solvers import Velocity


class VelocityNetwork(Protocol):
    """A network that turns features into conditions once, and latents into a velocity at every step."""

    @property
    def project(self) -> Callable[..., Any]:
        """Features, then the number of latent frames, to conditions."""

    @property
    def velocity(self) -> Callable[..., Tensor]:
        """Latents ``(B, C, T)``, times ``(B,)`` from 1 to 0 and conditions to the velocity ``(B, C, T)``."""

    @property
    def empty_features(self) -> Callable[[int, int], tuple[Tensor, ...]]:
        """From the numbers of clip and sync features to null features, in `project`'s order."""


def guided_velocity(
    network: VelocityNetwork,
    features: Sequence[Tensor],
    latent_length: int,
    guidance_scale: float,
    absent: Sequence[Tensor] | None = None,
) -> Velocity:
    """The network's velocity under conditions, pushed away from its velocity without them.

    Conditions are projected here, once. With a scale above 1 the conditional and the
    unconditional half run as one batch.

    Args:
        network: the diffusion transformer.
        features: what it is conditioned on, in the order of its ``project``, each with batch axis;
            clip features first, synchronisation features second.
        latent_length: T, latent frames to generate.
        guidance_scale: 1 follows the conditions as trained, and so does anything less; larger
            exaggerates them.
        absent: what the unconditional half gets instead of ``features``; the network's null features
            unless given. A negative text has its place here.
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
    # float64, so that a family which counts the other way gets one minus this time without a rounding.
    return torch.full((len(latents),), time, dtype=torch.float64, device=latents.device)
