"""Samples of a transformer in training: WAV files of a few clips to listen to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..data.shards import PreparedClips
from ..families.flow import FlowFamily
from ..families.protocol import TRANSFORMER, DecodingStep
from ..media.audio import to_pcm16, write_sound
from ..media.files import make_folder
from ..models.flow import FlowTransformer
from .flow import given_features, to_device
from .loop import autocast

STEPS = 24
TRUTH = "truth"  # the clips' own sounds, through the VAE
_SEED = 0


class SampleWriter:
    """Generates sound for the first clips of a prepared folder, from the same noise each time."""

    def __init__(
        self,
        clips: PreparedClips,
        count: int,
        family: FlowFamily,
        decoding: Sequence[DecodingStep],
        guidance_scale: float,
        device: torch.device,
        dtype: str,
    ) -> None:
        """
        Args:
            clips: provide the features.
            count: number of clips, at most.
            family: of the transformer.
            decoding: steps from latents to sound, with networks on ``device``.
            guidance_scale: of the samples.
            device: of the transformer.
            dtype: of its matrix products, as for `autocast`.
        """
        chosen = range(min(count, len(clips)))
        self._names = [re.sub(r"[^\w.@-]", "_", clips.names[index]) for index in chosen]
        self._batch = clips.batch(list(chosen))
        self._family, self._decoding, self._guidance_scale = family, decoding, guidance_scale
        self._device, self._dtype = device, dtype
        self._wrote_truth = False

    @torch.no_grad()
    def __call__(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        network = cast(FlowTransformer, networks[TRANSFORMER])
        if not self._wrote_truth:  # at each start of the run, which may have other clips
            self._write(self._batch.latent_mean, folder.with_name(TRUTH))
            self._wrote_truth = True
        batch = to_device(self._batch, self._device)
        noise = torch.randn(batch.latent_mean.shape, generator=torch.Generator().manual_seed(_SEED))
        given = given_features(network, self._family.conditions, batch)
        with autocast(self._device, self._dtype):
            latents = self._family.follow(
                network, given, noise, STEPS, self._guidance_scale, lambda step: None
            )
        self._write(latents, folder)

    def _write(self, latents: Tensor, folder: Path) -> None:
        make_folder(folder)
        for name, one in zip(self._names, latents, strict=True):
            sound = one[None].float().to(self._device)
            for step in self._decoding:
                sound = step.decode(sound)
            write_sound(folder / f"{name}.wav", to_pcm16(sound[0].cpu()), self._family.sound.sample_rate)
