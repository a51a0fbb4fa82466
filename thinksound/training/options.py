"""The options of a training run with their defaults, checked on construction.

The command line takes its defaults from here, so that a run is the same from the shell and from Python. Light
imports only: the command line reads this for ``--help``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.locate import weights_folder
from ..errors import InputError
from ..request import SEED

START_PRESET, START_SCRATCH = "preset", "scratch"
DTYPES = ("auto", "float32", "bfloat16")
LORA_LEARNING_RATE = 2e-4  # of an adapter, in place of the rate of `FlowOptions`


def check_least(options: object, least: float, *names: str) -> None:
    """Raise `InputError` if one of these options is below ``least``, infinite, or not a number."""
    for name in names:
        value = getattr(options, name)
        if not least <= value < math.inf:
            raise InputError(f"{name} {value}: give {least:g} or more", option=name)


def check_positive(options: object, *names: str) -> None:
    """Raise `InputError` if one of these options is 0 or less, infinite, or not a number."""
    for name in names:
        value = getattr(options, name)
        if not 0 < value < math.inf:
            raise InputError(f"{name} {value}: give more than 0", option=name)


def check_betas(betas: tuple[float, float]) -> None:
    """Raise `InputError` if AdamW would refuse these betas."""
    if not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas {betas[0]:g} {betas[1]:g}: give 0 to less than 1", option="betas")


def check_dtype(dtype: str, allowed: Sequence[str] = DTYPES[1:]) -> None:
    """Raise `InputError` if ``dtype`` is not one of ``allowed``."""
    if dtype not in allowed:
        raise InputError(f"dtype {dtype!r} is not known; give one of {', '.join(allowed)}", option="dtype")


@dataclass(frozen=True)
class LoopOptions:
    """Options of the training loop; intervals are in steps."""

    steps: int
    seed: int = 0
    warmup: int = 100  # steps over which the learning rate rises from 0
    final_rate: float = 1.0  # share of the learning rate left at the end of the cosine; 1 keeps it constant
    ema_decay: float = 0.9999  # of the averaged weights; the first steps average faster
    clip_norm: float = 1.0
    log_every: int = 20
    validate_every: int = 500
    save_every: int = 500
    sample_every: int = 0  # steps between samples to listen to; 0 is never
    keep: bool = False  # keep every checkpoint, under its step's number

    def __post_init__(self) -> None:
        check_least(self, 1, "steps", "log_every", "validate_every", "save_every")
        check_least(self, 0, "warmup", "sample_every")
        SEED.check("seed", self.seed)
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay {self.ema_decay}: give 0 to less than 1", option="ema_decay")
        if not 0 <= self.final_rate <= 1:
            raise InputError(f"final_rate {self.final_rate}: give 0 to 1", option="final_rate")
        check_positive(self, "clip_norm")

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step: linear warm-up, then a cosine down to ``final_rate``."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        share = min(1.0, max(0, step - self.warmup) / max(1, self.steps - self.warmup))
        return rise * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class FlowOptions:
    """The recipe; rate and betas are those of ThinkSound's published training."""

    batch: int = 8  # clips per step and process
    parts: int = 1  # into which a batch is split for less memory, with the same result
    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    drop_one: float | None = None  # chance of each group of conditions to be absent, on its own
    drop_all: float | None = None  # of all at once, for guidance; None: both as the family is trained
    dtype: str = "float32"  # of products: float32 or bfloat16

    def __post_init__(self) -> None:
        for name in ("drop_one", "drop_all"):
            chance = getattr(self, name)
            if chance is not None and not 0 <= chance < 1:
                raise InputError(f"{name} {chance}: give 0 to less than 1", option=name)
        check_least(self, 1, "batch")
        check_least(self, 0, "weight_decay")
        check_positive(self, "learning_rate")
        check_betas(self.betas)
        check_dtype(self.dtype)
        if not 1 <= self.parts <= self.batch:
            raise InputError(
                f"parts {self.parts}: give 1 to {self.batch}, the clips of a process's step", option="parts"
            )


@dataclass(frozen=True)
class LoRAOptions:
    """Rank of the added matrices; their product is scaled by ``alpha / rank``."""

    rank: int = 16
    alpha: int = 16

    def __post_init__(self) -> None:
        check_least(self, 1, "rank", "alpha")


@dataclass(frozen=True)
class Start:
    """Where a run's initial weights come from."""

    source: str = START_PRESET  # "preset", "scratch", or a file
    weights: Path | None = None  # folder of weight files; None is the usual one

    @property
    def folder(self) -> Path:
        return weights_folder(self.weights)

    @property
    def identity(self) -> str:
        """The source, a file by its absolute path."""
        named = self.source in (START_PRESET, START_SCRATCH)
        return self.source if named else str(Path(self.source).absolute())


@dataclass(frozen=True)
class DiTRun:
    """Training of the transformer."""

    preset: str
    data: Path  # folder of prepared clips
    folder: Path  # of the run: checkpoint, log, record
    loop: LoopOptions
    flow: FlowOptions  # `batch` counts the clips of all processes together
    validation: Path | None = None  # prepared clips that are not trained on
    start: Start = Start()
    lora: LoRAOptions | None = None  # train an adapter instead of all weights
    recompute: bool = False  # see `recompute_blocks`
    samples: int = 4  # clips that are generated every `loop.sample_every` steps
    tensorboard: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_least(self, 1, "samples")


@dataclass(frozen=True)
class VAERun:
    """Training of the VAE."""

    preset: str
    data: Path  # folder of audio and video files
    folder: Path  # of the run: checkpoint, log, record
    loop: LoopOptions
    start: Start = Start()
    recipe: Mapping[str, Any] = field(default_factory=dict)  # options of the VAE that differ
    tensorboard: bool = False
    device: str = "auto"
    dtype: str = "auto"
