"""Random values for networks that are not trained yet, seeded by their tensors' names.

Such a network turns its inputs into moderate noise, which is enough to try every part of the program. Equal
keys, names and shapes give equal values on every machine.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def drawn_tensors(key: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns float32 values for the tensors of a network.

    Args:
        key: of its weights in `registry`; another key gives other values.
        expected: the network's tensors by name; only their shapes are used.
    """
    return {name: _draw(f"{key}/{name}", tensor.shape) for name, tensor in expected.items()}


def _draw(name: str, shape: torch.Size) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    value = torch.as_tensor(generator.standard_normal(tuple(shape), dtype=np.float32))
    if name.endswith(("_mean", ".alpha", ".beta", "logit_scale")):
        return torch.zeros_like(value)
    if name.endswith("_std"):
        return torch.ones_like(value)
    if name.endswith("conv_post.weight"):
        return 0.02 * value  # keeps the sound below full scale
    if len(shape) == 1:
        return 1.0 + 0.1 * value if name.endswith("weight") else 0.05 * value
    if len(shape) == 2 and "embedding" in name:
        return value
    return value / math.sqrt(max(1, math.prod(shape[1:])))
