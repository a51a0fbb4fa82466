"""How the audio VAE of each family is trained: its options, its first values, its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..presets import Preset
from .loop import Learner
from .tiny.spectral_vae import (
    SpectralVAELearner,
    SpectralVAEOptions,
    initialise_spectrogram_vae,
    standardise_spectrogram_vae,
)
from .vae import Sounds, VAELearner, VAEOptions, initialise_vae, standardise


@dataclass(frozen=True)
class VAETraining:
    """What a family brings for ``thinksound train vae``."""

    options: Any  # the defaults, a frozen dataclass with `batch`, `excerpt` and `dtype`
    initialise: Callable[[Any, int], None]  # a VAE and a seed
    learner: Callable[[Any, Any, Sounds, int], Learner]  # VAE, options, sounds, seed
    standardise: Callable[[Any, Tensor], None]  # a VAE and the deviation (C,) of its latents


_TRAININGS = {
    "thinksound": VAETraining(VAEOptions(), initialise_vae, VAELearner, standardise),
    "tiny": VAETraining(
        SpectralVAEOptions(), initialise_spectrogram_vae, SpectralVAELearner, standardise_spectrogram_vae
    ),
}


def vae_training(preset: Preset) -> VAETraining:
    """How the VAE of a preset is trained."""
    return _TRAININGS[preset.family]
