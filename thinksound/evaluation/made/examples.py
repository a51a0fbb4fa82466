"""The best and the worst clips of an evaluation, as sounds and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...media.audio import to_pcm16, write_sound
from ...media.files import make_folder
from .onsets import detect_onsets, true_onsets
from .plot import plot_sound
from .rows import Row
from .scores import Reference
from .sounds import Sounds
from .spectra import RATE, Waveform


def write_examples(
    sounds: Sounds, row: Row, overall: Sequence[float], count: int, folder: Path, split: str
) -> None:
    """Write the sounds of the best and the worst clips of a row, and plots of them above the truth.

    Args:
        sounds: of the split.
        row: its recipe makes the sounds again.
        overall: score of each clip, by which clips are ranked.
        count: number of best clips, and of worst clips.
        folder: created if missing.
        split: the first part of the files' names.

    Raises:
        InputError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    make_folder(folder)
    order = sorted(range(len(overall)), key=lambda index: -overall[index])
    chosen = [("good", index) for index in order[:count]] + [("bad", index) for index in order[::-1][:count]]
    made = sounds.make(row.recipe, [index for _, index in chosen])
    for (verdict, index), waveform in zip(chosen, made, strict=True):
        reference = sounds.references[index]
        name = f"{split}-{verdict}-{reference.scene.seed:06d}"
        generated, true = _full_scale(waveform), _full_scale(reference.waveform)
        for suffix, sound in (("generated", generated), ("truth", true)):
            write_sound(folder / f"{name}-{suffix}.wav", to_pcm16(torch.from_numpy(sound)), RATE)
        plot_sound(
            folder / f"{name}.png",
            generated,
            true,
            RATE,
            true_onsets(reference.scene),
            detect_onsets(generated, RATE) if reference.is_impulsive else [],
            f"{split} {reference.scene.seed}: {_title(reference)}, overall {overall[index]:.2f}",
        )


def _title(reference: Reference) -> str:
    return " and ".join(
        f"{source.kind} of {material}"
        for source, material in zip(reference.scene.sources, reference.materials, strict=True)
    )


def _full_scale(waveform: Waveform) -> Waveform:
    return np.asarray(waveform / max(float(np.abs(waveform).max()), 1e-9), dtype=np.float32)
