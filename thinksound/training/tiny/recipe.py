"""The recipe of the bundled tiny model: synthetic clips in, five trained networks out, from one seed.

Each stage keeps its state in its own folder, so the recipe resumes where it was interrupted, and
independent stages can run at the same time. `scripts/train-tiny` runs the stages in order, with one thread
per process: two processes with one thread each are faster than one with two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from ...checkpoints.checksums import seal
from ...checkpoints.load import load_network
from ...data.prepare import prepare_clips
from ...data.shards import PreparedClips
from ...data.sources import MadeSource
from ...encoders.metaclip import build_metaclip
from ...encoders.t5 import build_t5
from ...families.protocol import TRANSFORMER
from ...families.tiny import family
from ...loading import load
from ...models.flow import FlowTransformer
from ...models.motion import MotionEncoder
from ...models.spectrogram_vae import SpectrogramVAE
from ...presets import TINY
from ...progress import Progress
from ...synthetic.make import CLIP_S
from ..flow import FlowLearner, initialise_flow
from ..loop import CHECKPOINT, Learner, Trainer, read_checkpoint, trainable
from ..options import FlowOptions, LoopOptions
from ..processes import own_rank
from ..record import declare_run
from ..vae import latent_deviation
from .encoders import (
    Films,
    PictureLearner,
    PretrainingOptions,
    SyncLearner,
    TextLearner,
    calm,
    initialise_motion,
)
from .made import MadeSounds, MadeTexts, film, read_films, save_films, training_clips, validation_clips
from .spectral_vae import (
    SpectralVAELearner,
    SpectralVAEOptions,
    initialise_spectrogram_vae,
    standardise_spectrogram_vae,
)
from .untrained import make_tiny, write_network

SEED = 0
START = "start"  # folder of the random networks
PROCESSES = 2  # that share films, prepared clips, the refined VAE and the transformer
FAMILY = family(TINY)
SIZES = FAMILY.sizes


@dataclass(frozen=True)
class Extent:
    """The number of clips for each stage, and a limit on its steps."""

    sounds: int = 2000  # for the VAE
    films: int = 2400  # for MetaCLIP and the motion encoder
    clips: int = 3600  # for the transformer
    validation: int = 96
    most_steps: int | None = None  # of each stage; None keeps the steps of its options

    def loop(self, options: LoopOptions) -> LoopOptions:
        """The options of a stage, with no more than ``most_steps``."""
        return replace(options, steps=min(options.steps, self.most_steps or options.steps))


FULL = Extent()
TRIAL = Extent(sounds=8, films=8, clips=8, validation=4, most_steps=2)  # a smoke test of all stages

VAE_OPTIONS = SpectralVAEOptions(batch=8, excerpt=48, learning_rate=1.5e-3, kl_weight=5e-6, dtype="bfloat16")
VAE_LOOP = LoopOptions(
    steps=3000, seed=SEED, warmup=50, final_rate=0.02, ema_decay=0.999, validate_every=100, save_every=100
)
# The VAE learns panning only if it weighs much, and keeps it with a small weight once it is learned. The
# second part trains the levels, above all of low frequencies: few bins for what the ear resolves finely.
REFINED_OPTIONS = replace(VAE_OPTIONS, batch=4, learning_rate=1e-3, side_weight=0.2, hearing=True)
REFINED_LOOP = replace(VAE_LOOP, steps=4200, seed=SEED + 1, validate_every=300, save_every=300)

FLOW_OPTIONS = FlowOptions(
    batch=16, learning_rate=1.5e-3, weight_decay=0.01, drop_one=0.2, drop_all=0.1, dtype="bfloat16"
)
FLOW_LOOP = LoopOptions(
    steps=2200, seed=SEED, warmup=100, final_rate=0.02, ema_decay=0.998, validate_every=200, save_every=100
)
# A second run from the first one's averages: its learning rate rises again and decays to almost 0.
REFINED_FLOW_OPTIONS = replace(FLOW_OPTIONS, learning_rate=1e-3)
REFINED_FLOW_LOOP = replace(FLOW_LOOP, steps=1200, seed=SEED + 1, warmup=50)


def start(folder: Path) -> None:
    """Write the preset's folder with random networks, and a copy to start from, if they do not exist."""
    for weights in (folder / START, folder / "weights"):
        if not (weights / TINY.name).exists():
            make_tiny(weights / TINY.name)


def train_vae(folder: Path, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Train the VAE's first part, on sounds of both splits."""
    vae = SpectrogramVAE(SIZES.vae)
    initialise_spectrogram_vae(vae, SEED)
    learner = SpectralVAELearner(vae, VAE_OPTIONS, _sounds(extent, progress))
    _trainer(learner, extent.loop(VAE_LOOP), folder / "vae", VAE_OPTIONS).run(progress, "vae")


def refine_vae(folder: Path, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Train the VAE's second part in `PROCESSES`, and scale its latents to standard deviation one."""
    vae = SpectrogramVAE(SIZES.vae)
    vae.load_state_dict(read_checkpoint(folder / "vae" / CHECKPOINT)["averages"]["vae"])
    sounds = _sounds(extent, progress)
    learner = SpectralVAELearner(vae, REFINED_OPTIONS, sounds)
    trainer = _trainer(learner, extent.loop(REFINED_LOOP), folder / "refined-vae", REFINED_OPTIONS)
    trainer.run(progress, "refined vae")
    if own_rank() == 0:
        trained = cast(SpectrogramVAE, trainer.averages["vae"])
        samples = VAE_OPTIONS.excerpt * trained.hop
        standardise_spectrogram_vae(trained, latent_deviation(trained, sounds, samples, batch=16))
        _install(folder, "vae.safetensors", trained)


def _sounds(extent: Extent, progress: Progress | None) -> MadeSounds:
    report = (lambda done, total: progress("sounds", done, total)) if progress else None
    return MadeSounds(extent.sounds, FAMILY.sound.sample_rate, report)


SYNC_OPTIONS = PretrainingOptions(batch=16, learning_rate=1e-3, dtype="bfloat16")
SYNC_LOOP = LoopOptions(
    steps=1200, seed=SEED, warmup=50, final_rate=0.02, ema_decay=0.99, validate_every=100, save_every=100
)
PICTURE_OPTIONS = PretrainingOptions(batch=48, learning_rate=6e-4)
PICTURE_LOOP = LoopOptions(
    steps=1000, seed=SEED, warmup=50, final_rate=0.05, ema_decay=0.99, validate_every=100, save_every=100
)
TEXT_LOOP = LoopOptions(
    steps=800, seed=SEED, warmup=50, final_rate=0.05, validate_every=400, save_every=400, ema_decay=0.99
)


def make_films(folder: Path, part: int, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Draw one part of the clips for `train_sync` and `train_pictures`; part 1 also the held-out ones."""
    wanted = {_films_name(extent, part): list(training_clips(extent.films))[part - 1 :: PROCESSES]}
    if part == 1:
        wanted[f"validation-{extent.validation}"] = list(validation_clips(extent.validation))
    (folder / "films").mkdir(parents=True, exist_ok=True)
    for name, clips in wanted.items():
        file = folder / "films" / f"{name}.safetensors"
        if not file.exists():
            save_films(film(clips, FAMILY.sound.sample_rate, SIZES.synchformer.pool, progress), file)


def _films_name(extent: Extent, part: int) -> str:
    return f"{extent.films}-part-{part}"


def _films(folder: Path, extent: Extent) -> tuple[Films, Films]:
    names = [_films_name(extent, part) for part in range(1, PROCESSES + 1)]
    parts = [folder / "films" / f"{name}.safetensors" for name in names]
    return read_films(parts), read_films([folder / "films" / f"validation-{extent.validation}.safetensors"])


def train_sync(folder: Path, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Train the motion encoder."""
    synchformer = MotionEncoder(SIZES.synchformer)
    initialise_motion(synchformer, SEED)
    learner = SyncLearner(synchformer, SYNC_OPTIONS, *_films(folder, extent), SEED)
    trainer = _trainer(learner, extent.loop(SYNC_LOOP), folder / "sync", SYNC_OPTIONS)
    _pretrain(folder, trainer, "synchformer.safetensors", progress)


def train_pictures(folder: Path, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Train MetaCLIP."""
    metaclip = load_network(build_metaclip, folder / START, TINY.weights["metaclip"], torch.float32)
    trainable(metaclip.model)
    calm(metaclip.model)
    learner = PictureLearner(metaclip, PICTURE_OPTIONS, *_films(folder, extent))
    trainer = _trainer(learner, extent.loop(PICTURE_LOOP), folder / "pictures", PICTURE_OPTIONS)
    _pretrain(folder, trainer, "metaclip/model.safetensors", progress)


def train_texts(folder: Path, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Train T5."""
    t5 = load_network(build_t5, folder / START, TINY.weights["t5"], torch.float32)
    trainable(t5.model)
    learner = TextLearner(t5, MadeTexts(), batch=32, learning_rate=1e-3, seed=SEED)
    trainer = _trainer(learner, extent.loop(TEXT_LOOP), folder / "texts")
    _pretrain(folder, trainer, "t5/model.safetensors", progress)


def _pretrain(folder: Path, trainer: Trainer, file: str, progress: Progress | None) -> None:
    """Train an encoder to its last step and install its averaged weights as ``file`` of the preset."""
    trainer.run(progress, trainer.folder.name)
    (network,) = trainer.averages.values()
    _install(folder, file, network)


def prepare(folder: Path, part: int, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Encode one part of the training clips and of the validation clips."""
    pipeline = load(TINY.name, folder / "weights", device="cpu")
    for name, clips in (
        ("clips", list(training_clips(extent.clips))),
        ("validation", list(validation_clips(extent.validation))),
    ):
        prepare_clips(
            pipeline,
            [MadeSource(split, seed) for split, seed in clips],
            folder / name,
            duration_s=CLIP_S,
            shard_size=120,
            part=(part, PROCESSES),
            progress=progress,
        )


def train_dit(folder: Path, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Train the transformer's first part; with ``torch.distributed`` the processes share the work."""
    dit = _transformer()
    initialise_flow(dit, SEED)
    _train_dit(folder, dit, FLOW_OPTIONS, extent.loop(FLOW_LOOP), "dit", progress)


def refine_dit(folder: Path, extent: Extent = FULL, progress: Progress | None = None) -> None:
    """Train the transformer's second part, shared like the first."""
    dit = _transformer()
    dit.load_state_dict(read_checkpoint(folder / "dit" / CHECKPOINT)["averages"]["dit"])
    loop = extent.loop(REFINED_FLOW_LOOP)
    trained = _train_dit(folder, dit, REFINED_FLOW_OPTIONS, loop, "refined-dit", progress)
    if own_rank() == 0:
        _install(folder, "mmdit.safetensors", trained)


def _transformer() -> FlowTransformer:
    network = cast(FlowTransformer, FAMILY.create(TRANSFORMER))
    trainable(network)
    return network


def _train_dit(
    folder: Path,
    dit: FlowTransformer,
    options: FlowOptions,
    loop: LoopOptions,
    stage: str,
    progress: Progress | None,
) -> nn.Module:
    """Train a transformer in the stage's folder; return the averaged one."""
    clips, validation = PreparedClips(folder / "clips"), PreparedClips(folder / "validation")
    processes = dist.get_world_size() if dist.is_initialized() else 1
    learner = FlowLearner(dit, FAMILY, options, clips, validation, loop.seed, own_rank(), processes)
    trainer = _trainer(learner, loop, folder / stage, options, clips.made_by)
    trainer.run(progress, stage)
    return trainer.averages["dit"]


def _trainer(
    learner: Learner,
    loop: LoopOptions,
    folder: Path,
    options: PretrainingOptions | SpectralVAEOptions | FlowOptions | None = None,
    data: Mapping[str, str] | None = None,
) -> Trainer:
    """The trainer of a stage in its folder.

    Raises:
        InputError: the stage began there with other settings or data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    declare_run(folder, {**vars(loop), **(vars(options) if options else {}), **(data or {})}, {})
    return Trainer(learner, loop, folder)


def _preset(folder: Path) -> Path:
    return folder / "weights" / TINY.name


def _install(folder: Path, file: str, network: nn.Module) -> None:
    """Write a trained network into the preset's folder and record its checksum."""
    write_network(_preset(folder), file, dict(network.named_parameters()))
    seal(_preset(folder))
