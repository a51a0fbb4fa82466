"""MMAudio's seeded weights and reference data; see `reference` for ThinkSound's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from parity.mmaudio.procedural_mmaudio import fill
from support.paths import PARITY
from support.reference import golden
from torch import Tensor, nn

from thinksound.checkpoints import load
from thinksound.models.folding import Folded

FOLDER = PARITY / "mmaudio"
Network = TypeVar("Network", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]


def mmaudio_golden(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of one golden file."""
    return golden(name, FOLDER / "golden")


def manifest(file: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a published file, all of which are float32."""
    tensors = json.loads((FOLDER / "manifest" / f"{file}.json").read_text())["tensors"]
    assert {dtype for _, dtype in tensors.values()} == {"float32"}
    return {name: tuple(shape) for name, (shape, _) in tensors.items()}


def published_on_meta(file: str) -> dict[str, Tensor]:
    """Return the tensors of a published file without values, on ``meta``."""
    return {name: torch.empty(shape, device="meta") for name, shape in manifest(file).items()}


def seeded_tensors(shapes: Shapes) -> Folded:
    """Return the tensors of a published file with seeded values, each made when it is looked up."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(fill(name, shapes[name])).reshape(shapes[name])

    return Folded({name: partial(tensor, name) for name in shapes})


def on_meta(build: Callable[[], Network]) -> Network:
    with torch.device("meta"):
        return build()


def filled(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Fill a network that was built on ``meta`` with ``tensors``, as strictly as from a file."""
    load.fill(network, tensors, Path("seeded"), torch.float32)
    return network.eval().requires_grad_(False)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensors[name].shape) for name in tensors}


def check_sums(inputs: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Check by their sums that the inputs are those of a golden file."""
    sums = json.loads(metadata["input_sums"])
    assert set(sums) == set(inputs)
    for name, (total, magnitude) in sums.items():
        values = inputs[name].double()
        assert abs(values.sum() - total) < 1e-3 and abs(values.abs().sum() - magnitude) < 1e-3, name
