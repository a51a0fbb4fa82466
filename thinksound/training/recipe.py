"""The recipe of the bundled tiny model: made data in, five trained networks out, from one seed.

Stages keep their state in folders of their own, so the recipe goes on where it was interrupted, and
stages that do not need each other can run at once. A stage runs on one thread: two processes with
one thread each do more than one process with two.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoints.load import load_metaclip, load_synchformer, load_t5
from ..presets import TINY
from .encoders import PictureLearner, PretrainingOptions, TextLearner, initialise_synchformer
from .loop import LoopOptions, Progress, Trainer, trainable
from .made import MadeScenes, MadeSounds, MadeTexts
from .vae import VAELearner, VAEOptions, initialise_vae

SEED = 0

SOUNDS = 2000  # clips whose sound trains the VAE
VAE_OPTIONS = VAEOptions(
    batch=8,
    excerpt=32,  # 1.024 s
    learning_rate=1e-3,
    discriminator_rate=4e-4,
    spectral_sizes=(2048, 512, 128, 64),
    discriminator_sizes=(1024, 512, 256),
    discriminator_channels=12,
    adversarial_from=1000,
    kl_weight=5e-4,
    dtype=torch.bfloat16,
)
VAE_LOOP = LoopOptions(steps=2200, seed=SEED, warmup=100, final_rate=0.1, validate_every=100, save_every=100)


def train_vae(folder: Path, progress: Progress | None = None) -> None:
    """The VAE, on sounds of both splits."""
    sounds = MadeSounds(
        SOUNDS,
        TINY.vae.sample_rate,
        (lambda done, total: progress("sounds", done, total)) if progress else None,
    )
    learner = VAELearner(initialise_vae(TINY.vae, SEED), VAE_OPTIONS, sounds, SEED)
    Trainer(learner, VAE_LOOP, folder / "vae").run(progress, "vae")


PICTURE_OPTIONS = PretrainingOptions(clips=8, segments=6, pictures=3, learning_rate=1e-3)
PICTURE_LOOP = LoopOptions(
    steps=360, seed=SEED, warmup=30, final_rate=0.05, validate_every=50, save_every=50, ema_decay=0.99
)
TEXT_LOOP = LoopOptions(
    steps=800, seed=SEED, warmup=50, final_rate=0.05, validate_every=400, save_every=400, ema_decay=0.99
)


def train_pictures(folder: Path, progress: Progress | None = None) -> None:
    """Synchformer and MetaCLIP."""
    weights = folder / "weights"
    synchformer = load_synchformer(weights, TINY.weights["synchformer"], TINY.synchformer, torch.float32)
    metaclip = load_metaclip(weights, TINY.weights["metaclip"], torch.float32)
    trainable(synchformer)
    trainable(metaclip.model)
    initialise_synchformer(synchformer, SEED)
    scenes = MadeScenes(TINY.vae.sample_rate)
    learner = PictureLearner(synchformer, metaclip, PICTURE_OPTIONS, scenes, SEED)
    Trainer(learner, PICTURE_LOOP, folder / "pictures").run(progress, "pictures")


def train_texts(folder: Path, progress: Progress | None = None) -> None:
    """T5."""
    t5 = load_t5(folder / "weights", TINY.weights["t5"], torch.float32)
    trainable(t5.model)
    learner = TextLearner(t5, MadeTexts(), batch=32, learning_rate=1e-3, seed=SEED)
    Trainer(learner, TEXT_LOOP, folder / "texts").run(progress, "texts")
