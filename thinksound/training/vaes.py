"""How the audio VAE of each family is trained: its options, its first values, its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..presets import Preset
from .loop import Learner
from .mel_vae import MelVAELearner, MelVAEOptions, initialise_mel_vae, measure_mels
from .tiny.spectral_vae import (
    SpectralVAELearner,
    SpectralVAEOptions,
    initialise_spectrogram_vae,
    standardise_spectrogram_vae,
)
from .vae import Sounds, VAELearner, VAEOptions, initialise_vae, standardise


@dataclass(frozen=True)
class VAETraining:
    """What ``thinksound train vae`` needs of a family."""

    options: Any  # the defaults, a frozen dataclass with `batch`, `excerpt` and `dtype`
    initialise: Callable[[Any, int], None]  # a VAE and a seed
    learner: Callable[[Any, Any, Sounds, int], Learner]  # VAE, options, sounds, seed
    # A VAE and the deviation (C,) of its latents; None where the transformer standardises them.
    standardise: Callable[[Any, Tensor], None] | None = None
    # A new VAE, sounds, and latent frames of an excerpt; None where nothing is measured before training.
    measure: Callable[[Any, Sounds, int], None] | None = None


def vae_training(preset: Preset) -> VAETraining:
    """How the VAE of a preset is trained."""
    if preset.family == "mmaudio":
        from ..families.mmaudio import SIZES  # as heavy as the family is

        mel = SIZES[preset.size].mel
        return VAETraining(
            MelVAEOptions(),
            initialise_mel_vae,
            lambda vae, options, sounds, seed: MelVAELearner(vae, mel, options, sounds, seed),
            measure=lambda vae, sounds, excerpt: measure_mels(vae, mel, sounds, excerpt),
        )
    if preset.family == "tiny":
        return VAETraining(
            SpectralVAEOptions(), initialise_spectrogram_vae, SpectralVAELearner, standardise_spectrogram_vae
        )
    if preset.family == "thinksound":
        return VAETraining(VAEOptions(), initialise_vae, VAELearner, standardise)
    raise InputError(f"preset {preset.name}: the training of its VAE is not offered; give another preset")
