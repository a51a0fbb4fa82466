"""Training in several processes, each with its own device, started by ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError
from ..runtime.placement import detect_machine, one_device

# Values that are exchanged at once; all gradients in one piece would be a second copy of the network.
BUCKET = 2**25
# The others wait while the first process works alone, for example on a checkpoint.
_PATIENCE = timedelta(hours=2)
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Process:
    """One of the processes of a run."""

    device: torch.device
    rank: int = 0
    count: int = 1


@contextmanager
def joined(device: str) -> Iterator[Process]:
    """This process, connected with the others if torchrun has started it.

    Args:
        device: "auto", "cpu", "cuda" or, for a single process, "cuda:N".

    Raises:
        InputError: the device is not known, or names one GPU for several processes.
        PlacementError: the machine does not have the device.
    """
    if not all(name in os.environ for name in _TORCHRUN):
        alone = Process(_device(device))
        with _without_denormals():
            yield alone
        return
    rank, count, place = (int(os.environ[name]) for name in _TORCHRUN)
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {device!r}: torchrun gives every process its own; give auto, cpu or cuda")
    if device == "cuda" or (device == "auto" and detect_machine().gpus):
        device = f"cuda:{place}"
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        with _without_denormals():
            yield Process(chosen, rank, count)
    finally:
        dist.destroy_process_group()


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero: AdamW's decaying moments become denormal and slow a CPU down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _device(wish: str) -> torch.device:
    if "," in wish:
        raise InputError(f"device {wish!r}: a process trains on one; several need torchrun")
    return torch.device(one_device(detect_machine(), wish))


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place; a single process changes nothing.

    Expects tensors of the same shapes in the same order from every process; all get the same bits.
    """
    if not dist.is_initialized():
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def mean_over_processes(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of each value over all processes; expects the same names in the same order from each."""
    if not dist.is_initialized():
        return dict(values)
    means = torch.tensor(list(values.values()), dtype=torch.float64, device=_meeting_place())
    dist.all_reduce(means)
    return dict(zip(values, (means / dist.get_world_size()).tolist(), strict=True))


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy the first process's values to all others, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def same_everywhere(number: int) -> bool:
    """Whether all processes gave the same number."""
    if not dist.is_initialized():
        return True
    lowest, highest = (torch.tensor(number, device=_meeting_place()) for _ in range(2))
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return bool(lowest == highest)


def own_rank() -> int:
    """This process's number; 0, which a single process has, is the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def _meeting_place() -> torch.device:
    """The device on which the processes can exchange tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
