"""The training loop: schedules, averages, logs, and checkpoints that resume bit-exactly.

A step depends only on the weights, the optimizer's state and the step's number, from which `step_generator`
makes its random numbers. A run that was killed therefore continues as if it had not been.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, OutputError
from ..media.files import whole_file
from ..progress import Progress
from .log import RunLog
from .options import LoopOptions
from .processes import (
    average_over_processes,
    copy_from_first,
    mean_over_processes,
    own_rank,
    same_everywhere,
)

CHECKPOINT = "checkpoint.pt"
Network = TypeVar("Network", bound=nn.Module)
SAMPLES = "samples"

# Called as report(step, kind, row) with what is logged.
Report = Callable[[int, str, Mapping[str, float]], None]
# Writes files that are made with the networks of `Trainer.best_networks` into a folder.
Writer = Callable[[Mapping[str, nn.Module], Path], None]


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The CPU generator of one step; processes of different rank get different random numbers."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def seeded(build: Callable[[], Network], seed: int) -> Network:
    """Build a module with initial values drawn from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def trainable(network: nn.Module) -> None:
    """Copy parameters, which may be views of a mapped file, to float32 and let them require gradients."""
    for parameter in network.parameters():
        parameter.data = parameter.data.float().clone()
        parameter.requires_grad_(True)


class Learner(ABC):
    """Networks that are trained together, and how one step changes them."""

    networks: dict[str, nn.Module]  # saved in the checkpoint
    averaged: tuple[str, ...]  # names of the networks whose weights are averaged
    optimizers: dict[str, torch.optim.Optimizer]
    # True: all processes get the same generator and each takes its share of the draws, so that the result
    # does not depend on their number. False: each process draws its own numbers.
    shares_draws = False

    @abstractmethod
    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        """Run one step; ``update(loss, optimizer)`` changes the weights. Returns values for the log."""

    def constrain(self, network: nn.Module) -> None:  # noqa: B027
        """Put back what weights must keep, such as their size; called with averaged networks."""

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Losses of ``networks``, which are those of `Trainer.best_networks`, on held-out data."""
        return {}


class Update:
    """Backward pass, averaging of gradients over processes, clipping and optimizer step."""

    def __init__(self, clip_norm: float) -> None:
        self._clip_norm = clip_norm

    def __call__(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Change weights by the gradient of ``loss``; returns its norm before clipping."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return self.step(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> float:
        """The same for gradients that were computed before."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_over_processes(p.grad for p in parameters if p.grad is not None)
        norm = nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        if torch.isfinite(norm):  # else a value overflowed, and the step is left out
            optimizer.step()
        return norm.item()


def autocast(device: torch.device, dtype: str) -> Any:
    """A context that computes matrix products and convolutions in ``dtype``; none for float32."""
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, getattr(torch, dtype))


class Trainer:
    """Runs a learner's steps and keeps everything needed to resume in the folder of the run."""

    def __init__(
        self,
        learner: Learner,
        options: LoopOptions,
        folder: Path | str,
        tensorboard: bool = False,
        write_samples: Writer | None = None,
        write_beside: Writer | None = None,
    ) -> None:
        """
        Args:
            learner: what is trained.
            options: of the loop.
            folder: of the run, created if missing.
            tensorboard: also log in TensorBoard's format.
            write_samples: called every ``options.sample_every`` steps, by one process.
            write_beside: called with the run's folder after each checkpoint, by one process.
        """
        self.learner = learner
        self.options = options
        self.folder = Path(folder)
        self.rank = own_rank()
        self.step = 0
        for network in learner.networks.values():
            copy_from_first(p.data for p in network.parameters() if p.requires_grad)
        self.averages = {name: _average_of(learner.networks[name]) for name in learner.averaged}
        self._rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in learner.optimizers.items()
        }
        self._write_samples, self._write_beside = write_samples, write_beside
        self._log = RunLog(self.folder, tensorboard) if self.rank == 0 else None

    def run(
        self, progress: Progress | None = None, stage: str = "train", report: Report | None = None
    ) -> int:
        """Train to the last step, from the folder's checkpoint if there is one.

        Returns:
            The number of steps that this call ran.

        Raises:
            InputError: as for `resume`.
            OutputError: a file of the run cannot be written.
        """
        options = self.options
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self._log:
            self._log.begin(self.step)
        start, since = time.perf_counter(), self.step
        sums: dict[str, list[float]] = {}

        def log(kind: str, row: Mapping[str, float]) -> None:
            if self._log and row:
                self._log.write(self.step, kind, row)
                if report:
                    report(self.step, kind, row)

        while self.step < options.steps:
            for key, value in self._one_step().items():
                sums.setdefault(key, []).append(value)
            if self._is_due(options.log_every):
                row = {key: sum(values) / len(values) for key, values in sums.items()}
                seconds = (time.perf_counter() - start) / (self.step - since)
                means = mean_over_processes(row)
                log("train", means | {"seconds_per_step": seconds})
                sums.clear()
            if self._is_due(options.validate_every):
                log("validation", self.learner.validate(self.best_networks()))
            if options.sample_every and self._is_due(options.sample_every):
                self._sample()
            if self._is_due(options.save_every):
                self.save()
            if progress:
                progress(stage, self.step, options.steps)
        return self.step - since

    def _sample(self) -> None:
        if self._write_samples and self.rank == 0:
            self._write_samples(self.best_networks(), self.folder / SAMPLES / f"{self.step:08d}")

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.options.steps

    def best_networks(self) -> dict[str, nn.Module]:
        """The learner's networks; those that are averaged have their averaged weights."""
        return {**self.learner.networks, **self.averages}

    def _one_step(self) -> dict[str, float]:
        factor = self.options.rate_factor(self.step)
        for name, optimizer in self.learner.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
        rank = 0 if self.learner.shares_draws else self.rank
        generator = step_generator(self.options.seed, self.step, rank)
        row = self.learner.train_step(self.step, generator, Update(self.options.clip_norm))
        self.step += 1
        self._average()
        return row

    @torch.no_grad()
    def _average(self) -> None:
        # As in MMAudio and others, early averages are over few steps.
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        for name, average in self.averages.items():
            for mean, value in zip(
                average.parameters(), self.learner.networks[name].parameters(), strict=True
            ):
                if value.requires_grad:  # frozen parameters are shared with the average
                    mean.lerp_(value.to(mean.dtype), 1 - decay)
            self.learner.constrain(average)

    def save(self) -> None:
        """Write everything that the next step depends on, whole or not at all.

        Raises:
            OutputError: the checkpoint cannot be written.
        """
        if self.rank:
            return
        learner = self.learner
        state = {
            "step": self.step,
            "networks": {
                name: _trained(network, network.state_dict()) for name, network in learner.networks.items()
            },
            "averages": {
                name: _trained(learner.networks[name], network.state_dict())
                for name, network in self.averages.items()
            },
            "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
        }
        file = self.folder / CHECKPOINT
        with whole_file(file) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # what PyTorch's writer raises if the disk is full
                raise OutputError(
                    f"{file}: cannot be written ({str(error).partition(chr(10))[0]}); is there space left?"
                ) from error
        if self.options.keep:
            _keep(file, file.with_stem(f"{file.stem}-{self.step:08d}"))
        if self._write_beside:
            self._write_beside(self.best_networks(), self.folder)

    def resume(self) -> None:
        """Load the folder's checkpoint, if there is one.

        Raises:
            InputError: it is damaged, it was made by another kind of run, or not every process sees it.
        """
        file = self.folder / CHECKPOINT
        state: dict[str, Any] = read_checkpoint(file) if file.exists() else {"step": 0}
        if not same_everywhere(state["step"]):
            raise InputError(
                f"{file}: not every process sees the same checkpoint; give a folder that all machines share"
            )
        if not state["step"]:
            return
        learner = self.learner
        if set(state["networks"]) != set(learner.networks):
            raise InputError(
                f"{file}: holds {', '.join(state['networks'])}, this run trains "
                f"{', '.join(learner.networks)}; give another folder"
            )
        for name, network in learner.networks.items():
            load_trained(network, _trained(network, network.state_dict()), state["networks"][name], file)
        for name, network in self.averages.items():
            trained = _trained(learner.networks[name], network.state_dict())
            load_trained(network, trained, state["averages"][name], file)
        for name, optimizer in learner.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            for values in optimizer.state.values():  # on a CPU they are still views of the mapped file
                values.update({key: value.clone() for key, value in values.items()})
        self.step = state["step"]


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint's state by memory mapping.

    Raises:
        InputError: it is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{file}: cannot be read ({str(error).partition(chr(10))[0]}); put an older one in its place, or "
            "delete it to start anew"
        ) from error
    return state


def load_trained(
    network: nn.Module, trained: Mapping[str, Tensor], stored: Mapping[str, Tensor], file: Path
) -> None:
    """Load ``stored`` values into a network; they must match its ``trained`` ones in name and shape.

    Raises:
        InputError: names or sizes differ.
    """
    wrong = next(
        (
            name
            for name in {**trained, **stored}
            if name not in trained or name not in stored or trained[name].shape != stored[name].shape
        ),
        None,
    )
    if wrong is not None:
        raise InputError(
            f"{file}: made with other network sizes (see {wrong}); give another folder, or the options "
            "that it was made with"
        )
    network.load_state_dict(stored, strict=False)


def _average_of(network: nn.Module) -> nn.Module:
    """A copy of a network for averaged weights; parameters that are not trained are shared."""
    frozen = {id(p): p for p in network.parameters() if not p.requires_grad}
    average = deepcopy(network, frozen)
    return average.requires_grad_(False)


def _trained(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state that training changes."""
    frozen = {name for name, p in network.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def _keep(file: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        os.link(file, copy)
    except OSError:  # a file system without links
        with whole_file(copy) as temporary:
            shutil.copyfile(file, temporary)
