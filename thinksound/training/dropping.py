"""Which conditions training takes away from clips, so that a transformer can do without them.

Guidance needs that, and so does a video without a caption, or a caption without a video. Families are
trained differently: ThinkSound (https://arxiv.org/abs/2506.21448, section 4) drops its conditions one by one,
and all at once; MMAudio (https://arxiv.org/abs/2412.15322; the chances are those of its published code) drops
frames and synchronisation together, and the text on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..families.protocol import Family
from .options import FlowOptions


@dataclass(frozen=True)
class Dropping:
    """How a family is trained."""

    drop_one: float = 0.2  # chance of each group to be absent, on its own
    drop_all: float = 0.1  # chance of all to be absent at once
    together: tuple[str, ...] = ()  # conditions of one group; each of the others is a group of its own

    def groups(self, family: Family) -> list[int]:
        """For each of the family's conditions, in its order, the number of its group."""
        names = [condition.name for condition in family.conditions]
        leaders = [self.together[0] if name in self.together else name for name in names]
        order = list(dict.fromkeys(leaders))
        return [order.index(leader) for leader in leaders]


_DROPPING = {"mmaudio": Dropping(0.1, 0.0, ("clip_features", "sync_features"))}


def dropping(family: Family) -> Dropping:
    """How a family's conditions are dropped."""
    return _DROPPING.get(family.preset.family, Dropping())


def settled(options: FlowOptions, family: Family) -> FlowOptions:
    """The options with chances that were left open as the family is trained."""
    usual = dropping(family)
    return replace(
        options,
        drop_one=usual.drop_one if options.drop_one is None else options.drop_one,
        drop_all=usual.drop_all if options.drop_all is None else options.drop_all,
    )
