"""From a seed and features to latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.mmdit import MMDiT
from .guidance import guided_velocity
from .schedule import flow_times
from .solvers import euler


def draw_noise(seed: int, channels: int, latent_length: int, channels_last: bool = False) -> Tensor:
    """Standard normal noise ``(1, C, T)``, drawn on the CPU so that a seed means the same everywhere.

    These are the numbers that ``torch.manual_seed(seed)`` followed by ``torch.randn`` gives, for
    ``channels_last`` those of a tensor ``(1, T, C)``.
    """
    generator = torch.Generator().manual_seed(seed)
    if channels_last:
        return torch.randn(1, latent_length, channels, generator=generator).transpose(1, 2)
    return torch.randn(1, channels, latent_length, generator=generator)


def sample_latents(
    network: MMDiT,
    features: tuple[Tensor, Tensor, Tensor, Tensor],
    noise: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    on_step: Callable[[int], None],
) -> Tensor:
    """Carry ``noise (B, C, T)`` along the flow to latents ``(B, C, T)`` float32, on the network's device."""
    device = network.sync_pos_emb.device
    latent_length = noise.shape[-1]
    clip, sync, text, t5 = (part.to(device) for part in features)
    velocity = guided_velocity(network, (clip, sync, text, t5), latent_length, guidance_scale)
    return euler(velocity, noise.to(device), flow_times(num_inference_steps), on_step)
