"""The training loop: schedules, averages, logs, and checkpoints that resume bit-exactly.

What a step does depends on the weights, the optimizer and the step's number alone: its random numbers
come from ``step_generator(seed, step, rank)``, so a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import csv
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InputError
from ..media.files import whole_file

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"

# Called as progress(stage, done, total) while training runs.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LoopOptions:
    """How long, how fast, how often."""

    steps: int
    seed: int = 0
    warmup: int = 100  # steps in which the learning rate rises from 0
    final_rate: float = 1.0  # share of the learning rate left at the end of the cosine; 1 keeps it constant
    ema_decay: float = 0.999  # of the averaged weights; the first steps average faster
    clip_norm: float = 1.0
    log_every: int = 20
    validate_every: int = 500
    save_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: give 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay {self.ema_decay}: give 0 to less than 1")

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step: linear warm-up, then a cosine down to ``final_rate``."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        share = min(1.0, max(0, step - self.warmup) / max(1, self.steps - self.warmup))
        return rise * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * share)))


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Random numbers of one step of one process, on the CPU."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose initial values are drawn from ``seed``, leaving the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def trainable(network: nn.Module) -> None:
    """Make parameters that may be views of a mapped file writable, float32 and open to gradients."""
    for parameter in network.parameters():
        parameter.data = parameter.data.float().clone()
        parameter.requires_grad_(True)


class Learner(ABC):
    """Networks that are trained together, and how one step changes them."""

    networks: dict[str, nn.Module]  # saved in the checkpoint
    averaged: tuple[str, ...]  # those whose averaged weights are what is used in the end
    optimizers: dict[str, torch.optim.Optimizer]

    @abstractmethod
    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        """One step; ``update(loss, optimizer)`` changes weights. Returns what the log shows."""

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Losses on held-out data, with averaged weights in place of those that are averaged."""
        return {}


class Update:
    """Backward pass, gradients averaged over processes, clipped, optimizer step."""

    def __init__(self, clip_norm: float) -> None:
        self._clip_norm = clip_norm

    def __call__(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Returns the norm of the gradient before clipping."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        average_over_processes(gradients)
        norm = nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        if torch.isfinite(norm):  # a step with an overflow changes nothing
            optimizer.step()
        return norm.item()


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place; alone, nothing happens."""
    if not dist.is_initialized():
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """Matrix products and convolutions in ``dtype``; float32 changes nothing."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


class Trainer:
    """Runs a learner's steps and keeps everything needed to go on in its folder."""

    def __init__(self, learner: Learner, options: LoopOptions, folder: Path | str) -> None:
        self.learner = learner
        self.options = options
        self.folder = Path(folder)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.step = 0
        self.averages = {name: deepcopy(learner.networks[name]) for name in learner.averaged}
        for network in self.averages.values():
            network.requires_grad_(False)
        self._rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in learner.optimizers.items()
        }

    def run(self, progress: Progress | None = None, stage: str = "train") -> None:
        """Train from the checkpoint in the folder, or from the start, to the last step."""
        options = self.options
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        start, since = time.perf_counter(), self.step
        sums: dict[str, list[float]] = {}
        while self.step < options.steps:
            for key, value in self._one_step().items():
                sums.setdefault(key, []).append(value)
            if self.step % options.log_every == 0 or self.step == options.steps:
                seconds = (time.perf_counter() - start) / (self.step - since)
                row = {key: sum(values) / len(values) for key, values in sums.items()}
                self._log("train", row | {"seconds_per_step": seconds})
                sums.clear()
            if self.step % options.validate_every == 0 or self.step == options.steps:
                self._log("validation", self.learner.validate(self.best_networks()))
            if self.step % options.save_every == 0 or self.step == options.steps:
                self.save()
            if progress:
                progress(stage, self.step, options.steps)

    def best_networks(self) -> dict[str, nn.Module]:
        """The learner's networks, averaged where they are averaged."""
        return {**self.learner.networks, **self.averages}

    def _one_step(self) -> dict[str, float]:
        factor = self.options.rate_factor(self.step)
        for name, optimizer in self.learner.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
        generator = step_generator(self.options.seed, self.step, self.rank)
        row = self.learner.train_step(self.step, generator, Update(self.options.clip_norm))
        self.step += 1
        self._average()
        return row

    @torch.no_grad()
    def _average(self) -> None:
        # As in MMAudio and others: few steps are averaged over few steps.
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        for name, average in self.averages.items():
            for mean, value in zip(
                average.parameters(), self.learner.networks[name].parameters(), strict=True
            ):
                mean.lerp_(value.to(mean.dtype), 1 - decay)

    def _log(self, kind: str, row: Mapping[str, float]) -> None:
        if self.rank or not row:
            return
        file = self.folder / LOG
        new = not file.exists()
        with file.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["step", "kind", "name", "value"])
            writer.writerows([self.step, kind, name, f"{value:.6g}"] for name, value in row.items())

    def save(self) -> None:
        """Write everything that the next step depends on, whole or not at all."""
        if self.rank:
            return
        learner = self.learner
        state = {
            "step": self.step,
            "options": json.dumps(asdict(self.options)),
            "networks": {name: network.state_dict() for name, network in learner.networks.items()},
            "averages": {name: network.state_dict() for name, network in self.averages.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
        }
        with whole_file(self.folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Take up the folder's checkpoint, if there is one.

        Raises:
            InputError: it was made by another kind of run.
        """
        file = self.folder / CHECKPOINT
        if not file.exists():
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        learner = self.learner
        if set(state["networks"]) != set(learner.networks):
            raise InputError(
                f"{file}: holds {', '.join(state['networks'])}, this run trains "
                f"{', '.join(learner.networks)}; give another folder"
            )
        try:
            for name, network in learner.networks.items():
                network.load_state_dict(state["networks"][name])
            for name, network in self.averages.items():
                network.load_state_dict(state["averages"][name])
        except RuntimeError as error:
            raise InputError(
                f"{file}: made with other network sizes ({str(error).splitlines()[1].strip()}); "
                "give another folder or the preset that it was made with"
            ) from error
        for name, optimizer in learner.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.step = state["step"]
        self._forget_after(self.step)

    def _forget_after(self, step: int) -> None:
        """Drop rows of the log that the resumed steps will write again."""
        file = self.folder / LOG
        if self.rank or not file.exists():
            return
        header, *rows = file.read_text().splitlines()
        kept = [row for row in rows if int(row.split(",", 1)[0]) <= step]
        with whole_file(file) as temporary:
            temporary.write_text("\n".join([header, *kept]) + "\n")
