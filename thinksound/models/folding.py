"""Published weights as the plain ones that they stand for: normalisation is worked out once, at load.

A network that is only used holds the effective weights of its convolutions. They cost nothing per call,
and a converted file holds nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

# Gain and direction, as PyTorch's older and newer weight norm name them.
_SPELLINGS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


class Folded(Mapping[str, Tensor]):
    """Tensors that are computed when they are looked up, so that one at a time is in memory."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> Folded:
    """``tensors`` with each pair of gain g and direction v as one ``weight``, ``g * v / |v|`` in float32.

    Both spellings are known, and plain weights stay as they are. The norm is over all axes but the first:
    per output channel of a convolution, per input channel of a transposed one. A gain without a direction
    of that many channels stays under its own name, where strict loading finds it.
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
