"""Synthetic clips for training: sounds for the VAE, frames with sound for the encoders, texts for T5."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...data.sounds import draw_excerpt
from ...encoders.views import METACLIP_VIEW, SYNC_VIEW
from ...errors import OutputError
from ...media.files import whole_file
from ...progress import Progress
from ...synthetic.make import CLIP_S, make_scene
from ...synthetic.seeds import STEERING, TRAINING
from ...synthetic.sound import synthesise
from ...synthetic.stream import scene_frames
from ...synthetic.texts import describe
from .encoders import Films, sound_targets

HELD_OUT_SOUNDS = 64
PICTURES = 4  # frames of a clip for MetaCLIP


def training_clips(count: int, first: int = 0) -> Iterator[tuple[str, int]]:
    """Yield split and seed of ``count`` training clips from number ``first`` on, with the splits mixed."""
    for index in range(first, first + count):
        yield _split(index), TRAINING[index]


def validation_clips(count: int) -> Iterator[tuple[str, int]]:
    """Yield split and seed of validation clips, which are in neither training nor evaluation."""
    for index in range(count):
        yield _split(index), STEERING[index]


def _split(index: int) -> str:
    """The split of a clip: two of five are hard, evenly mixed."""
    return "hard" if index % 5 in (2, 4) else "standard"


class MadeSounds:
    """Excerpts of synthetic sounds, which are kept in memory as 16-bit integers."""

    def __init__(
        self, count: int, sample_rate: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        def sounds(clips: Iterator[tuple[str, int]], total: int) -> Tensor:
            kept = np.empty((total, 2, round(CLIP_S * sample_rate)), np.int16)
            for place, (split, seed) in enumerate(clips):
                sound = synthesise(make_scene(split, seed), sample_rate)
                kept[place] = np.round(sound * 32767)
                if progress:
                    progress(place + 1, total)
            return torch.from_numpy(kept)

        self.sample_rate = sample_rate
        self._sounds = sounds(training_clips(count), count)
        self._held_out = sounds(validation_clips(HELD_OUT_SOUNDS), HELD_OUT_SOUNDS)

    def batch(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        """Excerpts ``(count, 2, samples)`` float32 of sounds drawn with ``generator``."""
        excerpts = []
        for _ in range(count):
            drawn = int(torch.randint(len(self._sounds), (), generator=generator))
            excerpts.append(draw_excerpt(self._sounds[drawn], samples, generator))
        return torch.stack(excerpts)

    def held_out(self, samples: int) -> Tensor:
        """The middle of each held-out sound, ``(N, 2, samples)`` float32."""
        start = (self._held_out.shape[-1] - samples) // 2
        return self._held_out[..., start : start + samples].float() / 32767


def film(
    clips: Sequence[tuple[str, int]], sample_rate: int, pool: int, progress: Progress | None = None
) -> Films:
    """Draw and synthesise clips for pretraining of MetaCLIP and the motion encoder.

    ``pool`` is the factor by which the frames of the motion encoder are reduced.
    """
    small, pictures, targets, captions = [], [], [], []
    for number, (split, seed) in enumerate(clips, start=1):
        scene = make_scene(split, seed)
        frames = scene_frames(scene, (METACLIP_VIEW, SYNC_VIEW))
        for_clip, for_sync = frames[METACLIP_VIEW.name], frames[SYNC_VIEW.name]
        reduced = F.avg_pool2d(for_sync.movedim(-1, 1).float(), pool)  # (S', 3, H, W)
        small.append(reduced.round().to(torch.uint8).movedim(1, -1))
        pictures.append(for_clip[:: len(for_clip) // PICTURES].clone())  # a view would keep the whole clip
        sound = torch.from_numpy(synthesise(scene, sample_rate))
        targets.append(sound_targets(sound, sample_rate).half())
        captions.append(describe(scene)[0])
        if progress:
            progress("films", number, len(clips))
    return Films(torch.stack(small), torch.stack(pictures), torch.stack(targets), captions)


def save_films(films: Films, file: Path) -> None:
    """Write films to a file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {"small": films.small, "pictures": films.pictures, "targets": films.targets}
    with whole_file(file) as temporary:
        try:  # directly, because films take gigabytes and `save` would make a copy in memory
            save_file(tensors, temporary, {"captions": json.dumps(list(films.captions))})
        except SafetensorError as error:
            raise OutputError(f"{file}: cannot be written ({error}); is there space left?") from error


def read_films(files: Sequence[Path]) -> Films:
    """Read the films of several files as one."""
    parts, captions = [], []
    for file in files:
        with safe_open(file, framework="pt") as stored:
            parts.append({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
            captions += json.loads(stored.metadata()["captions"])
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Films(**whole, captions=captions)


class MadeTexts:
    """Chains of thought of training clips; every fourth text is a caption instead."""

    def batch(self, step: int, count: int) -> Sequence[str]:
        texts = [describe(make_scene(*clip)) for clip in training_clips(count, step * count)]
        return [caption if place % 4 == 3 else cot for place, (caption, cot) in enumerate(texts)]
