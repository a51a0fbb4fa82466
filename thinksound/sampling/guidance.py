"""Classifier-free guidance (https://arxiv.org/abs/2207.12598) around a velocity network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.mmdit import MMDiT

# Velocity (B, C, T) at latents (B, C, T) and a flow time.
Velocity = Callable[[Tensor, float], Tensor]


def guided_velocity(
    network: MMDiT, features: tuple[Tensor, Tensor, Tensor, Tensor], latent_length: int, guidance_scale: float
) -> Velocity:
    """The network's velocity under conditions, pushed away from its velocity without them.

    Conditions are projected here, once. With a scale other than 1 the conditional and the
    unconditional half run as one batch.

    Args:
        network: the diffusion transformer.
        features: picture, synchronisation, caption and chain-of-thought features, each with batch axis.
        latent_length: T, latent frames to generate.
        guidance_scale: 1 follows the conditions as trained; larger exaggerates them.
    """
    if guidance_scale == 1:
        conditions = network.project(*features, latent_length)
        return lambda latents, time: network(latents, _times(latents, time), conditions)

    batch = len(features[0])
    empty = network.empty_features(clip_length=features[0].shape[1], sync_length=features[1].shape[1])
    clip, sync, text, t5 = (
        torch.cat([given, absent.to(given).expand(batch, -1, -1)])
        for given, absent in zip(features, empty, strict=True)
    )
    conditions = network.project(clip, sync, text, t5, latent_length)

    def velocity(latents: Tensor, time: float) -> Tensor:
        both = torch.cat([latents, latents])
        conditional, unconditional = network(both, _times(both, time), conditions).chunk(2)
        return unconditional + (conditional - unconditional) * guidance_scale

    return velocity


def _times(latents: Tensor, time: float) -> Tensor:
    return torch.full((len(latents),), time, dtype=torch.float32, device=latents.device)
