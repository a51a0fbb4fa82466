"""The sounds of held-out clips: true, through the codec, or made by a model from what was encoded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.shards import PreparedClips
from ...models.mmdit import MMDiT
from ...pipeline import Pipeline
from ...sampling.sample import draw_noise, sample_latents
from ...synthetic.make import make_scene
from ...synthetic.seeds import MEASURED
from ...synthetic.texts import describe
from .rows import Recipe
from .scores import Reference
from .spectra import RATE, Waveform, resample

logger = logging.getLogger(__name__)


class Sounds:
    """The sounds of one split's clips, made by any recipe."""

    def __init__(self, pipeline: Pipeline, split: str, clips: PreparedClips) -> None:
        self.references = [Reference.of(make_scene(split, MEASURED[index])) for index in range(len(clips))]
        self._contradicting = [Reference.contradicting(each.scene) for each in self.references]
        self._pipeline = pipeline
        self._clips = clips
        self._scrambled: MMDiT | None = None

    @property
    def latent_rate_hz(self) -> float:
        vae = self._pipeline.preset.vae
        return vae.sample_rate / vae.hop

    def reference(self, recipe: Recipe, index: int) -> Reference:
        """What a sound of the recipe is held against."""
        return (self._contradicting if recipe.contradicted else self.references)[index]

    def partner(self, index: int) -> int:
        """The clip that a clip's sound is given to: the next one, of those with impacts or those without."""
        count, impulsive = len(self.references), self.references[index].is_impulsive
        later = [(index + step) % count for step in range(1, count)]
        alike = [each for each in later if self.references[each].is_impulsive == impulsive]
        return (alike or later)[0]

    def make(self, recipe: Recipe, indices: Sequence[int]) -> list[Waveform]:
        """Sounds (2, A) at `spectra.RATE`, as long as the clips at most."""
        if recipe.maker == "truth":
            return [self.reference(recipe, index).waveform for index in indices]
        latents = (
            self._clips.batch(indices).latent_mean
            if recipe.maker == "codec"
            else self._sample(recipe, indices)
        )
        sounds = []
        for row, index in enumerate(indices):
            waveform = self._pipeline.decode_audio(latents[row])
            if not waveform.isfinite().all():
                logger.warning(
                    "clip %d: the sound holds values that are not numbers; it counts as silence", index
                )
                waveform = torch.zeros_like(waveform)
            at_rate = resample(waveform.numpy(), self._pipeline.preset.vae.sample_rate)
            sounds.append(at_rate[:, : self.references[index].scene.sample_count(RATE)])
        return sounds

    @torch.inference_mode()
    def _sample(self, recipe: Recipe, indices: Sequence[int]) -> Tensor:
        """Latents (B, C, T); the noise of a clip follows from its seed alone."""
        pipeline, batch = self._pipeline, self._clips.batch(indices)
        if recipe.contradicted:
            text_features, t5_features = self._encode_texts([self._contradicting[index] for index in indices])
        else:
            text_features, t5_features = batch.text_features, batch.t5_features
        channels, length = batch.latent_mean.shape[1:]
        noise = torch.cat(
            [draw_noise(self.references[each].scene.seed, channels, length) for each in indices]
        )
        with pipeline.placement.on_device("dit"):
            network = self._scramble() if recipe.scrambled else pipeline.mmdit
            given = [batch.clip_features, batch.sync_features, text_features, t5_features]
            empty = network.empty_features(given[0].shape[1], given[1].shape[1])
            for place, condition in enumerate(("video", "sync", "text", "text")):
                if condition in recipe.absent:
                    given[place] = empty[place].to(given[place]).expand_as(given[place])
            clip, sync, text, t5 = given
            return sample_latents(
                network, (clip, sync, text, t5), noise, recipe.steps, recipe.guidance_scale, lambda step: None
            ).cpu()

    def _encode_texts(self, references: Sequence[Reference]) -> tuple[Tensor, Tensor]:
        pipeline = self._pipeline
        texts = [
            Pipeline.check_texts(*describe(reference.scene, reference.materials)) for reference in references
        ]
        with pipeline.placement.on_device("metaclip"):
            captions = torch.stack([pipeline.metaclip.encode_text(caption).cpu() for caption, _ in texts])
        with pipeline.placement.on_device("t5"):
            cots = torch.stack([pipeline.t5.encode(cot).cpu() for _, cot in texts])
        return captions.float(), cots.float()

    def _scramble(self) -> MMDiT:
        """The transformer with the values of each of its tensors in random order."""
        if self._scrambled is None:
            generator = torch.Generator().manual_seed(0)
            network = copy.deepcopy(self._pipeline.mmdit)
            for parameter in network.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
            self._scrambled = network
        return self._scrambled
