"""Classifier-free guidance (https://arxiv.org/abs/2207.12598) around a velocity network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

# Velocity (B, C, T) at latents (B, C, T) and a flow time.
Velocity = Callable[[Tensor, float], Tensor]


class VelocityNetwork(Protocol):
    """A network that turns features into conditions once, and latents into a velocity at every step."""

    @property
    def project(self) -> Callable[..., Any]:
        """Features, then the number of latent frames, to conditions."""

    @property
    def __call__(self) -> Callable[..., Tensor]:
        """Latents ``(B, C, T)``, times ``(B,)`` and conditions to the velocity ``(B, C, T)``."""

    def empty_features(self, clip_length: int, sync_length: int) -> tuple[Tensor, ...]:
        """The features of nothing, in `project`'s order, each with a batch of one."""


def guided_velocity(
    network: VelocityNetwork,
    features: tuple[Tensor, ...],
    latent_length: int,
    guidance_scale: float,
    absent: tuple[Tensor, ...] | None = None,
) -> Velocity:
    """The network's velocity under conditions, pushed away from its velocity without them.

    Conditions are projected here, once. With a scale above 1 the conditional and the
    unconditional half run as one batch.

    Args:
        network: the diffusion transformer.
        features: what it is conditioned on, in the order of its ``project``, each with batch axis;
            pictures first, synchronisation second.
        latent_length: T, latent frames to generate.
        guidance_scale: 1 follows the conditions as trained, and so does anything less; larger
            exaggerates them.
        absent: what the unconditional half gets instead of ``features``; the network's null features
            unless given. A negative text has its place here.
    """
    if guidance_scale <= 1:
        conditions = network.project(*features, latent_length)
        return lambda latents, time: network(latents, _times(latents, time), conditions)

    batch = len(features[0])
    if absent is None:
        absent = network.empty_features(clip_length=features[0].shape[1], sync_length=features[1].shape[1])
    both_features = [
        torch.cat([given, nothing.to(given).expand(batch, -1, -1)])
        for given, nothing in zip(features, absent, strict=True)
    ]
    conditions = network.project(*both_features, latent_length)

    def velocity(latents: Tensor, time: float) -> Tensor:
        both = torch.cat([latents, latents])
        conditional, unconditional = network(both, _times(both, time), conditions).chunk(2)
        return unconditional + (conditional - unconditional) * guidance_scale

    return velocity


def turned(velocity: Velocity) -> Velocity:
    """The velocity in time from 1 (noise) to 0 (sound) of a network whose own time runs from 0 to 1.

    On the grid of `schedule.turned_flow_times` the network gets exactly its float32 times.
    """
    return lambda latents, time: -velocity(latents, 1 - time)


def _times(latents: Tensor, time: float) -> Tensor:
    return torch.full((len(latents),), time, dtype=torch.float32, device=latents.device)
