"""Made data as training material: sounds for the VAE, pictures with their sound for the encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..synthetic.make import make_scene
from ..synthetic.seeds import HELD_OUT, TRAINING
from ..synthetic.sound import synthesise
from ..synthetic.stream import encoder_pictures
from ..synthetic.texts import describe
from .encoders import Scenes

CLIP_S = 4.0  # seconds of a made clip
HARD_SHARE = 0.4  # of the training clips; both splits are measured
HELD_OUT_SOUNDS = 64
# Held-out seeds from here on steer training; those before are for the evaluation alone.
VALIDATION_FIRST = HELD_OUT.stop // 2


def training_clips(count: int, first: int = 0) -> Iterator[tuple[str, int]]:
    """Split and seed of ``count`` training clips, the splits mixed evenly."""
    for index in range(first, first + count):
        hard = int((index + 1) * HARD_SHARE) > int(index * HARD_SHARE)
        yield "hard" if hard else "standard", TRAINING[index]


def validation_clips(count: int) -> Iterator[tuple[str, int]]:
    """Split and seed of clips that steer training and are in neither training nor evaluation."""
    for index in range(count):
        yield "hard" if index % 5 in (1, 3) else "standard", VALIDATION_FIRST + index


class MadeSounds:
    """Excerpts of made sounds, kept in memory as 16-bit integers."""

    def __init__(
        self, count: int, sample_rate: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        def sounds(clips: Iterator[tuple[str, int]], total: int) -> Tensor:
            kept = np.empty((total, 2, round(CLIP_S * sample_rate)), np.int16)
            for place, (split, seed) in enumerate(clips):
                sound = synthesise(make_scene(split, seed, CLIP_S), sample_rate)
                kept[place] = np.round(sound * 32767)
                if progress:
                    progress(place + 1, total)
            return torch.from_numpy(kept)

        self._sounds = sounds(training_clips(count), count)
        self._held_out = sounds(validation_clips(HELD_OUT_SOUNDS), HELD_OUT_SOUNDS)

    def batch(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        """Excerpts ``(count, 2, samples)``: the louder of two places, at a random level, side and sign."""
        longest = self._sounds.shape[-1] - samples
        chosen = []
        for _ in range(count):
            sound = self._sounds[_integer(len(self._sounds), generator)]
            starts = (_integer(longest + 1, generator), _integer(longest + 1, generator))
            places = [sound[:, start : start + samples].float() / 32767 for start in starts]
            excerpt = max(places, key=lambda place: place.square().mean().item())
            level, swap, sign = torch.rand(3, generator=generator).tolist()
            excerpt = excerpt.flip(0) if swap < 0.5 else excerpt
            chosen.append(excerpt * 10 ** (-0.6 * level) * (1 if sign < 0.5 else -1))
        return torch.stack(chosen)

    def held_out(self, samples: int) -> Tensor:
        """The middle of each held-out sound ``(N, 2, samples)``."""
        start = (self._held_out.shape[-1] - samples) // 2
        return self._held_out[..., start : start + samples].float() / 32767


def _integer(limit: int, generator: torch.Generator) -> int:
    """0 to ``limit`` - 1."""
    return int(torch.randint(limit, (), generator=generator))


class MadeScenes:
    """Clips for pretraining the picture encoders, each drawn when it is asked for."""

    HELD_OUT = 24

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._held_out = self._make(validation_clips(self.HELD_OUT))

    def batch(self, step: int, count: int) -> Scenes:
        return self._make(training_clips(count, step * count))

    def held_out(self) -> Scenes:
        return self._held_out

    def _make(self, clips: Iterator[tuple[str, int]]) -> Scenes:
        scenes = [make_scene(split, seed, CLIP_S) for split, seed in clips]
        pictures = [encoder_pictures(scene) for scene in scenes]
        return Scenes(
            clip_frames=[clip for clip, _ in pictures],
            sync_frames=[sync for _, sync in pictures],
            waveforms=[torch.from_numpy(synthesise(scene, self.sample_rate)) for scene in scenes],
            captions=[describe(scene)[0] for scene in scenes],
        )


class MadeTexts:
    """Chains of thought, and captions for every fourth text."""

    def batch(self, step: int, count: int) -> Sequence[str]:
        texts = [describe(make_scene(*clip, CLIP_S)) for clip in training_clips(count, step * count)]
        return [caption if place % 4 == 3 else cot for place, (caption, cot) in enumerate(texts)]
