"""The sounds of held-out clips: true, through the codec, or generated from encoded features."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...batches import Frames
from ...data.clips import texts_read
from ...data.shards import PreparedClips
from ...families.protocol import TRANSFORMER, Features
from ...pipeline import Pipeline
from ...request import Options, Texts
from ...synthetic.make import make_scene
from ...synthetic.seeds import MEASURED
from ...synthetic.stream import scene_frames
from ...synthetic.texts import describe
from .rows import TEXTS, Recipe
from .scores import Reference
from .spectra import RATE, Waveform, resample

logger = logging.getLogger(__name__)

# Name in `Recipe.absent` -> source of the family's conditions.
_SOURCES = {"video": "clip", "sync": "sync", "text": "text"}


def decode(pipeline: Pipeline, latents: Tensor, index: int) -> Waveform:
    """The sound (2, A) of latents (C, T), at the rate of the family; ``index`` names the clip in the log."""
    waveform = pipeline.decode_audio(latents)
    if not waveform.isfinite().all():
        logger.warning("clip %d: the sound holds values that are not numbers; it counts as silence", index)
        waveform = torch.zeros_like(waveform)
    return waveform.expand(2, -1).numpy()  # what is mono counts as a sound from the middle


class Sounds:
    """The sounds of one split's clips, made by any recipe."""

    def __init__(self, pipeline: Pipeline, split: str, clips: PreparedClips) -> None:
        self.references = [Reference.of(make_scene(split, MEASURED[index])) for index in range(len(clips))]
        self._contradicting = [Reference.contradicting(each.scene) for each in self.references]
        self._pipeline = pipeline
        self._clips = clips
        self._scrambled: Pipeline | None = None

    @property
    def latent_rate_hz(self) -> float:
        sound = self._pipeline.family.sound
        return sound.sample_rate / sound.hop

    def reference(self, recipe: Recipe, index: int) -> Reference:
        """What a sound of the recipe is compared with."""
        return (self._contradicting if recipe.contradicted else self.references)[index]

    def texts(self, recipe: Recipe, index: int) -> Texts:
        """The texts that a sound of the recipe is made from."""
        reference, other = self.references[index], self._contradicting[index]
        given = dict(zip(TEXTS, describe(reference.scene), strict=True))
        claimed = dict(zip(TEXTS, describe(other.scene, other.materials), strict=True))
        texts = given | {name: claimed[name] for name in recipe.contradicted}
        return texts_read(self._pipeline.family, Texts(**{name: texts[name] for name in recipe.texts}))

    def partner(self, index: int) -> int:
        """The clip that a swapped sound is compared with: the next that also has, or also lacks, impacts."""
        count, impulsive = len(self.references), self.references[index].is_impulsive
        later = [(index + step) % count for step in range(1, count)]
        alike = [each for each in later if self.references[each].is_impulsive == impulsive]
        return (alike or later)[0]

    def make(self, recipe: Recipe, indices: Sequence[int]) -> list[Waveform]:
        """Sounds (2, A) at `spectra.RATE`, no longer than their clips."""
        if recipe.maker == "truth":
            return [self.reference(recipe, index).waveform for index in indices]
        latents = (
            self._clips.batch(indices).latent_mean
            if recipe.maker == "codec"
            else self._sample(recipe, indices)
        )
        sounds = []
        for row, index in enumerate(indices):
            waveform = decode(self._pipeline, latents[row], index)
            at_rate = resample(waveform, self._pipeline.family.sound.sample_rate)
            sounds.append(at_rate[:, : self.references[index].scene.sample_count(RATE)])
        return sounds

    def _sample(self, recipe: Recipe, indices: Sequence[int]) -> Tensor:
        """Latents (B, C, T); the noise of a clip depends only on its seed."""
        pipeline, clips = self._pipeline, self._clips
        stored = clips.batch(indices).features
        features = [{name: part[row] for name, part in stored.items()} for row in range(len(indices))]
        if recipe.contradicted or recipe.texts != TEXTS or recipe.fps is not None:
            encoded = self._encode(recipe, indices)
            features = [given | dict(changed) for given, changed in zip(features, encoded, strict=True)]
        absent = {_SOURCES[each] for each in recipe.absent}
        kept = [each.name for each in pipeline.family.conditions if each.source not in absent]
        samples = (self._scramble() if recipe.scrambled else pipeline).sample(
            [{name: given[name] for name in kept} for given in features],
            clips.layout.duration_s,
            [
                Options(recipe.steps, recipe.guidance_scale, self.references[index].scene.seed)
                for index in indices
            ],
        )
        return torch.stack([sample.latents for sample in samples])

    def _encode(self, recipe: Recipe, indices: Sequence[int]) -> list[Features]:
        """The features of the recipe's texts, and of frames if they are drawn at another rate."""
        texts = [self.texts(recipe, index) for index in indices]
        frames: list[Frames] = [{} for _ in indices]
        if recipe.fps is not None:
            scenes = [replace(self.references[index].scene, fps=recipe.fps) for index in indices]
            frames = [scene_frames(scene, self._pipeline.family.views) for scene in scenes]
        return self._pipeline.encode(frames, [each.caption for each in texts], [each.cot for each in texts])

    def _scramble(self) -> Pipeline:
        """The pipeline with the values of each parameter of its transformer shuffled."""
        if self._scrambled is None:
            pipeline, generator = self._pipeline, torch.Generator().manual_seed(0)
            with pipeline.placement.on_device(TRANSFORMER), torch.inference_mode():
                network = copy.deepcopy(pipeline.model.networks[TRANSFORMER])
                for parameter in network.parameters():
                    order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))
            model = copy.copy(pipeline.model)
            model.networks = {**model.networks, TRANSFORMER: network}
            self._scrambled = Pipeline(pipeline.preset, model, pipeline.placement)
        return self._scrambled
