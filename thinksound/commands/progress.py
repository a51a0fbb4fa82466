"""Progress bars of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


class Bars:
    """One progress bar per stage on standard error."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bars: dict[str, tqdm[None]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._quiet:
            return
        from tqdm import tqdm

        if stage not in self._bars:
            form = "{l_bar}{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
            label = f"{STAGES.get(stage, stage):<18}"
            self._bars[stage] = tqdm(desc=label, total=total, bar_format=form, disable=None)
        bar = self._bars[stage]
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    def note(self, stage: str, text: str) -> None:
        """Show a text beside the bar of a stage that has begun."""
        if stage in self._bars:
            self._bars[stage].set_postfix_str(text)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
