"""Prepared clips with random features, for tests of training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from thinksound.data.shards import Batch, Layout, ShardHeader, write_index, write_shard
from thinksound.families.find import family_of
from thinksound.families.protocol import Family
from thinksound.presets import TINY

TINY_FAMILY = family_of(TINY)


def random_batch(count: int, duration_s: float = 1.0, seed: int = 0, family: Family = TINY_FAMILY) -> Batch:
    """Make a batch of random features of about unit size, as from encoders; every third clip has no video."""
    generator = torch.Generator().manual_seed(seed)
    layout = Layout.of(family, duration_s)

    def draw(name: str) -> Tensor:
        return torch.randn(count, *layout.shapes[name], generator=generator)

    has_video = torch.arange(count) % 3 != 2
    seen = has_video[:, None, None]
    return Batch(
        {
            condition.name: draw(condition.name) * (seen if condition.source != "text" else 1)
            for condition in family.conditions
        },
        latent_mean=draw("latent_mean"),
        latent_scale=draw("latent_scale") - 4,
        has_video=has_video,
    )


def write_clips(
    folder: Path, count: int, duration_s: float = 1.0, seed: int = 0, family: Family = TINY_FAMILY
) -> Path:
    """Write a folder of prepared clips with one shard."""
    folder.mkdir()
    layout = Layout.of(family, duration_s)
    names = [f"clip {seed}-{index}" for index in range(count)]
    header = ShardHeader(layout, "encoders", "sources", names, [])
    write_shard(folder, 0, header, random_batch(count, duration_s, seed, family))
    write_index(folder, layout, {"encoders": "encoders"}, [names])
    return folder
