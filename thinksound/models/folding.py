"""Folding of weight normalisation: the effective weights are computed once, when a file is loaded.

Networks that are not trained here have plain convolutions with the effective weights. This costs nothing per
call, and converted files have the same plain weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

# Names of gain and direction in PyTorch's older and newer weight norm.
_SPELLINGS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


class Folded(Mapping[str, Tensor]):
    """A mapping that computes a tensor when it is looked up, so that one at a time is in memory."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> Folded:
    """Replaces each pair of gain g and direction v by one ``weight``, ``g * v / |v|`` in float32.

    Both spellings are recognised; other tensors do not change. The norm is over all axes but the first: per
    output channel of a convolution, per input channel of a transposed one. A gain whose direction is missing
    or has another number of channels keeps its name, so that strict loading reports it.
    """
    makers: dict[str, Callable[[], Tensor]] = {name: partial(tensors.__getitem__, name) for name in tensors}
    for gain in tensors:
        for gain_ending, direction_ending in _SPELLINGS:
            stem = gain.removesuffix(gain_ending)
            direction = stem + direction_ending
            if stem == gain or direction not in tensors:
                continue
            if tensors[gain].shape == (*tensors[direction].shape[:1], 1, 1):
                del makers[gain], makers[direction]
                makers[f"{stem}weight"] = partial(_weight, tensors, gain, direction)
    return Folded(makers)


def _weight(tensors: Mapping[str, Tensor], gain: str, direction: str) -> Tensor:
    weight: Tensor = torch._weight_norm(tensors[direction].float(), tensors[gain].float(), 0)
    return weight
