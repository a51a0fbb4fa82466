"""The options of an evaluation on synthetic clips, with the defaults of Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ...request import CFG_SCALE, STEPS
from ...synthetic.seeds import MEASURED, SPLITS
from .rows import choose, table_rows

EXAMPLES_ROW = "generated"
QUIET = "quiet"  # the section of quiet videos, in options and results
SECTIONS = (*SPLITS, QUIET)


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured; checked on construction."""

    splits: tuple[str, ...] = SECTIONS
    count: int = 240  # clips of each split of scenes
    quiet_count: int = 40  # quiet videos
    rows: tuple[str, ...] | None = None  # keys; None for all
    cfg_scale: float | None = None  # None: that of the preset
    steps: int = 24
    batch: int = 16  # clips that are sampled together
    part: tuple[int, int] = (1, 1)  # (I, N): the I-th of N shares of the rows
    examples: int = 0  # number of best and of worst generated clips to write

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("count", self.count, 2, len(MEASURED)),  # 2, because the row "another" swaps sounds
            ("quiet_count", self.quiet_count, 1, len(MEASURED)),
            ("batch", self.batch, 1, 1_024),
            ("steps", self.steps, STEPS.low, STEPS.high),
            ("examples", self.examples, 0, self.count // 2),
        ):
            if not least <= value <= most:
                raise InputError(f"{name} {value}: give {least} to {most}", option=name)
        if self.cfg_scale is not None:
            CFG_SCALE.check("cfg_scale", self.cfg_scale)
        if not self.splits or set(self.splits) - set(SECTIONS):
            raise InputError(f"splits {', '.join(self.splits) or 'none'}: give {' or '.join(SECTIONS)}")
        chosen = choose(table_rows(1.0, 1), self.rows)
        if self.examples and EXAMPLES_ROW not in {row.key for row in chosen}:
            raise InputError(f"examples are of the row {EXAMPLES_ROW!r}, which is not among the rows; add it")
