"""Conditions, guidance and sampling of families whose transformer is a `FlowTransformer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..models.flow import FlowTransformer
from ..sampling.guidance import guided_velocity
from ..sampling.noise import draw_noise
from ..sampling.solvers import euler
from .protocol import TRANSFORMER, Family, Features, Model


class FlowFamily(Family):
    """A family that integrates a velocity from noise to latents."""

    noise_is_channels_last = False  # order in which a seed's random numbers fill the noise

    @staticmethod
    def flow_times(steps: int) -> Tensor:
        """Returns the solver's ``steps + 1`` times, from 1 to 0."""
        raise NotImplementedError

    def encode_nulls(self, transformer: FlowTransformer, load: Callable[[str], Any]) -> None:
        """Fill the null features of a new transformer that are not learned but computed by an encoder.

        Args:
            transformer: to be trained from scratch.
            load: returns a network of the family by name, as from `build`, with its weights.
        """

    def draw_noise(self, seed: int, duration_s: float) -> Tensor:
        """Returns the noise ``(C, T)`` float32 of ``seed``."""
        length = self.sound.latent_length(duration_s)
        return draw_noise(seed, self.sound.latent_dim, length, self.noise_is_channels_last)[0]

    @torch.inference_mode()
    def follow(
        self,
        transformer: FlowTransformer,
        given: Sequence[Tensor],
        noise: Tensor,
        steps: int,
        guidance_scale: float,
        on_step: Callable[[int], None],
        absent: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Integrate from noise to the VAE's latents ``(B, C, T)`` float32, on the transformer's device.

        Args:
            transformer: the family's, on any device.
            given: its conditions in its order, each ``(B, N, D)``.
            noise: ``(B, C, T)``.
            steps: of the solver.
            guidance_scale: 1 follows the conditions; larger values exaggerate them.
            on_step: called with the number of finished steps.
            absent: conditions that guidance moves away from, each ``(B, N, D)``; by default null features.
        """
        device = transformer.sync_pos_emb.device
        velocity = guided_velocity(
            transformer,
            [part.to(device) for part in given],
            noise.shape[-1],
            guidance_scale,
            absent and [part.to(device) for part in absent],
        )
        latents = euler(velocity, noise.to(device), self.flow_times(steps), on_step)
        return transformer.unnormalised(latents)


class FlowModel(Model):
    """The networks of a flow family with their weights."""

    family: FlowFamily

    @property
    def transformer(self) -> FlowTransformer:
        return cast(FlowTransformer, self.networks[TRANSFORMER])

    def draw_noise(self, seed: int, duration_s: float) -> Tensor:
        return self.family.draw_noise(seed, duration_s)

    def sample(
        self,
        features: Sequence[Features],
        duration_s: float,
        noise: Tensor,
        steps: int,
        guidance_scale: float,
        on_step: Callable[[int], None],
    ) -> Tensor:
        given = self.conditions(features, duration_s)
        absent = self.unconditional(features, given)
        return self.family.follow(self.transformer, given, noise, steps, guidance_scale, on_step, absent)

    def conditions(self, features: Sequence[Features], duration_s: float) -> list[Tensor]:
        """Returns the transformer's inputs in order, ``(B, N, D)``; null features replace missing ones."""
        lengths = [
            max(
                (len(each[condition.name]) for each in features if condition.name in each),
                default=condition.shape(duration_s)[0],
            )
            for condition in self.family.conditions
        ]
        # Every flow family has its conditions in this order: CLIP frames, synchronisation, texts.
        empty = self.transformer.empty_features(lengths[0], lengths[1])
        return [
            torch.stack(
                [
                    each[condition.name] if condition.name in each else nothing[0].float().cpu()
                    for each in features
                ]
            )
            for condition, nothing in zip(self.family.conditions, empty, strict=True)
        ]

    def unconditional(self, features: Sequence[Features], given: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """Returns the conditions that guidance moves away from, in order; None means null features."""
        return None
