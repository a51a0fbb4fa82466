"""Shows progress on the command line: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from ..progress import tenths

if TYPE_CHECKING:
    from tqdm import tqdm

STAGES = {
    "load": "Networks",
    "decode": "Reading the video",
    "metaclip": "MetaCLIP",
    "synchformer": "Synchformer",
    "sample": "Sampling",
    "clips": "Clips",
    "train": "Training",
}


def _line(stage: str, done: int, total: int) -> None:
    # One write with the line break, because stages may run side by side in threads.
    sys.stderr.write(f"{STAGES.get(stage, stage)} {done:,}/{total:,}\n")
    sys.stderr.flush()


class Bars:
    """A `Progress` with one bar per stage on standard error, or a line for each tenth if it is no terminal.

    ``with Bars(quiet) as bars`` closes the bars at the end, also after an error.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bars: dict[str, tqdm[None]] = {}
        self._lines = None if sys.stderr.isatty() else tenths(_line)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._lines is not None:
            self._lines(stage, done, total)
            return
        from tqdm import tqdm

        if stage not in self._bars:
            form = "{l_bar}{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
            label = f"{STAGES.get(stage, stage):<18}"
            self._bars[stage] = tqdm(desc=label, total=total, bar_format=form)
        bar = self._bars[stage]
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    def note(self, stage: str, text: str) -> None:
        """Show a text beside the bar of a stage, if the stage has begun."""
        if stage in self._bars:
            self._bars[stage].set_postfix_str(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for bar in self._bars.values():
            bar.close()
