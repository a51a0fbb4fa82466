"""Training of the judges on true sounds, which are augmented, and on their known content."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ...media.files import make_folder, whole_file
from ...progress import Progress
from ...synthetic.kinds import KINDS
from ...synthetic.make import CLIP_S, make_scene
from ...synthetic.scene import Scene
from ...synthetic.seeds import JUDGES, SPLITS
from ...synthetic.sound import synthesise
from ...training.loop import seeded
from .judges import (
    KIND_NAMES,
    MATERIAL_NAMES,
    ONSETS_FILE,
    RECORD_FILE,
    SOURCES_FILE,
    Judges,
    OnsetJudge,
    SourceJudge,
    relative_level,
)
from .onsets import OnsetMatch, detect_onsets, match_onsets, true_onsets
from .spectra import MEL_BANDS, MEL_FRAME_S, RATE, mel_power

_HELD_OUT_FIRST = JUDGES.start + len(JUDGES) // 2  # judge seeds from here on test the judges
_BATCH = 32
_ONSET_WIDTH = 1.0  # in frames: standard deviation of the target around an onset
_ONSET_WEIGHT = 3.0  # in the loss of frames with an onset, because frames without are many more

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class JudgeOptions:
    """Amount of training data, epochs and seed of the judges' training."""

    standard: int = 2_000  # clips
    hard: int = 3_500
    held_out: int = 300  # clips of each split
    onset_epochs: int = 3
    source_epochs: int = 6
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """True sounds as inputs of the judges, with their targets."""

    power: Tensor  # (N, T, 64)
    onsets: Tensor  # (N, T) target of the onset judge
    kinds: Tensor  # (N, 8) 1 for each kind in the clip
    materials: Tensor  # (N, 8) index of each kind's material, -1 if the kind is not in the clip


def make_examples(scenes: Sequence[Scene], progress: Callable[[int], None]) -> Examples:
    """Synthesise scenes of `CLIP_S` seconds; ``progress`` is called with the number done."""
    frames = round(CLIP_S / MEL_FRAME_S) + 1
    power = np.empty((len(scenes), frames, MEL_BANDS), np.float32)
    onsets = np.zeros((len(scenes), frames), np.float32)
    kinds = np.zeros((len(scenes), len(KIND_NAMES)), np.float32)
    materials = np.full((len(scenes), len(KIND_NAMES)), -1)
    at = np.arange(frames)
    for row, scene in enumerate(scenes):
        power[row] = mel_power(synthesise(scene, RATE))
        for onset in true_onsets(scene):
            bump = np.exp(-(((at - onset / MEL_FRAME_S) / _ONSET_WIDTH) ** 2) / 2)
            onsets[row] = np.maximum(onsets[row], bump)
        for source in scene.sources:
            index = KIND_NAMES.index(source.kind)
            kinds[row, index] = 1
            materials[row, index] = MATERIAL_NAMES.index(source.material)
        progress(row + 1)
    return Examples(*map(torch.from_numpy, (power, onsets, kinds, materials)))


def worsen(power: Tensor, generator: torch.Generator) -> Tensor:
    """Augment mel powers (B, T, 64) by what a recording or a codec does and a judge must not react to.

    That is a smooth equaliser of a few dB, a low-pass filter in the upper half of the bands in part of the
    clips, noise from -70 to -35 dB, and random changes of each power, of up to 1.5 dB standard deviation.
    """
    batch = len(power)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    curve = F.interpolate(normal(batch, 1, 6) * 3, size=MEL_BANDS, mode="linear", align_corners=True)[:, 0]
    cutoff = 40 + 60 * uniform(batch, 1)  # the index of a band; most are beyond the last one
    curve = curve - 3 * F.relu(torch.arange(MEL_BANDS) - cutoff)  # dB
    power = power * 10 ** (curve / 10)[:, None]
    scatter = normal(*power.shape)
    power = power * (0.35 * uniform(batch, 1, 1) * scatter).exp()
    noise = power.amax(dim=(1, 2), keepdim=True) * 10 ** -(3.5 + 3.5 * uniform(batch, 1, 1))
    return power + noise * scatter.square()


def train_judges(
    folder: Path, options: JudgeOptions | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Train both judges and write them with a record of their accuracy; returns the record.

    Equal options give equal judges on the same machine with the same number of threads.

    Args:
        folder: created if missing.
        options: of the training.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        OutputError: the folder cannot be written.
    """
    options = options or JudgeOptions()
    report = progress or (lambda stage, done, total: None)
    make_folder(folder)
    scenes = [
        make_scene(split, seed)
        for split, count in (("standard", options.standard), ("hard", options.hard))
        for seed in range(JUDGES.start, JUDGES.start + count)
    ]
    examples = make_examples(scenes, lambda done: report("sounds", done, len(scenes)))
    onsets = train_onsets(examples, options, report)
    sources = train_sources(examples, options, report)
    judges = Judges(onsets, sources, {})
    record = {
        "trained on": {"standard": options.standard, "hard": options.hard, "first seed": JUDGES.start},
        "tested on": {"clips of each split": options.held_out, "first seed": _HELD_OUT_FIRST},
        **{split: examine(judges, held_out_scenes(split, options.held_out)) for split in SPLITS},
    }
    for name, network in ((ONSETS_FILE, onsets), (SOURCES_FILE, sources)):
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(save(_compact(network)))
    with whole_file(folder / RECORD_FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def train_onsets(examples: Examples, options: JudgeOptions, report: Progress) -> OnsetJudge:
    """Train the onset judge on true onset times."""
    network = _seeded(OnsetJudge, options.seed)
    weight = torch.tensor(_ONSET_WEIGHT)

    def loss(levels: Tensor, rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(network(levels), examples.onsets[rows], pos_weight=weight)

    _train(network, examples.power, options.onset_epochs, options.seed, loss, "onset judge", report)
    return network


def train_sources(examples: Examples, options: JudgeOptions, report: Progress) -> SourceJudge:
    """Train the judge of kinds, and of materials given the kind."""
    network = _seeded(SourceJudge, options.seed + 1)

    def loss(levels: Tensor, rows: Tensor) -> Tensor:
        kinds, materials = network(levels)
        kind_loss = F.binary_cross_entropy_with_logits(kinds, examples.kinds[rows])
        wanted = examples.materials[rows].flatten()
        return 4 * kind_loss + F.cross_entropy(materials.flatten(0, 1), wanted, ignore_index=-1)

    _train(network, examples.power, options.source_epochs, options.seed + 1, loss, "source judge", report)
    return network


def _seeded(kind: type[Network], seed: int) -> Network:
    network = seeded(kind, seed)
    assert isinstance(network, kind)
    return network.train()


def _train(
    network: nn.Module,
    power: Tensor,
    epochs: int,
    seed: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    stage: str,
    report: Progress,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = min(_BATCH, len(power))
    steps = epochs * (len(power) // size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=max(2, steps), pct_start=0.2)
    for step, rows in enumerate(_batches(len(power), size, epochs, generator), start=1):
        value = loss(relative_level(worsen(power[rows], generator)), rows)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        report(stage, step, steps)


def _batches(count: int, size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from order[: count // size * size].split(size)


def held_out_scenes(split: str, count: int) -> list[Scene]:
    """Scenes for testing the judges, on which nothing was trained."""
    return [make_scene(split, _HELD_OUT_FIRST + index) for index in range(count)]


def examine(judges: Judges, scenes: Sequence[Scene]) -> dict[str, float]:
    """Accuracy of the judges, and of the plain onset detector, on the true sounds of scenes."""
    learned, plain = OnsetMatch(0, 0, 0), OnsetMatch(0, 0, 0)
    kinds: list[float] = []
    materials: dict[str, list[bool]] = {name: [] for name in MATERIAL_NAMES}
    for scene in scenes:
        sound = synthesise(scene, RATE)
        judgement = judges.listen(sound)
        onsets = true_onsets(scene)
        if len(onsets):
            learned += match_onsets(onsets, judgement.onsets, 0.05)
            plain += match_onsets(onsets, detect_onsets(sound, RATE), 0.05)
        heard = judgement.likeliest_kinds(len(scene.sources))
        for source in scene.sources:
            kinds.append(float(source.kind in heard))
            if len(KINDS[source.kind].materials) > 1:
                materials[source.material].append(judgement.material_of(source.kind) == source.material)
    every = [right for name in MATERIAL_NAMES for right in materials[name]]
    return {
        "onset F1 at 50 ms": round(learned.f1, 4),
        "onset F1 at 50 ms, plain detector": round(plain.f1, 4),
        "kind": round(float(np.mean(kinds)), 4),
        "material": round(float(np.mean(every)), 4) if every else 0.0,
        "material, worst": round(
            min((float(np.mean(each)) for each in materials.values() if each), default=0.0), 4
        ),
    }


def _compact(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network, those of several dimensions in half precision."""
    return {
        name: (tensor.half() if tensor.dim() > 1 else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
