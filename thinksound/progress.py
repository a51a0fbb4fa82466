"""The type of functions that progress is reported to."""

from __future__ import annotations

from collections.abc import Callable

# Called as progress(stage, done, total). A stage is a network, a file, or one of `commands.progress.STAGES`;
# done and total count its steps, clips or bytes.
Progress = Callable[[str, int, int], None]


def tenths(report: Callable[[str, int, int], object]) -> Progress:
    """Return a `Progress` that calls ``report`` at most ten times per stage, for logs."""
    reached: dict[str, int] = {}

    def throttled(stage: str, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth > reached.get(stage, 0):
            reached[stage] = tenth
            report(stage, done, total)

    return throttled
