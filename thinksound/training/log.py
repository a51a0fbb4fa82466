"""The log of a run: one CSV file, and on request files for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, OutputError
from ..media.files import whole_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = "log.csv"
TENSORBOARD = "tensorboard"
_HEADER = ["step", "kind", "name", "value"]


class RunLog:
    """Writes values by step, kind ("train" or "validation") and name.

    Args:
        folder: of the run.
        tensorboard: also write TensorBoard's files, into the subfolder ``tensorboard``.

    Raises:
        InputError: TensorBoard's package is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self._folder = folder
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        if tensorboard:
            check_tensorboard()

    def begin(self, step: int) -> None:
        """Start the log after ``step``; later rows are dropped, because they will be logged again."""
        file = self._folder / LOG
        if file.exists():
            rows = list(csv.reader(io.StringIO(file.read_text())))[1:]
            # A process that was killed may have left an incomplete row.
            kept = [row for row in rows if len(row) == len(_HEADER) and int(row[0]) <= step]
            with whole_file(file) as temporary, temporary.open("w", newline="") as stream:
                csv.writer(stream).writerows([_HEADER, *kept])
        if self._tensorboard:
            self._writer = check_tensorboard()(str(self._folder / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, kind: str, row: Mapping[str, float]) -> None:
        file = self._folder / LOG
        lines = io.StringIO()
        writer = csv.writer(lines)
        if not file.exists():
            writer.writerow(_HEADER)
        writer.writerows([step, kind, name, f"{value:.6g}"] for name, value in row.items())
        try:
            with file.open("a", newline="") as stream:
                stream.write(lines.getvalue())
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror})") from error
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
            self._writer.flush()


def check_tensorboard() -> type[SummaryWriter]:
    """The class that writes TensorBoard's files.

    Raises:
        InputError: TensorBoard's package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "TensorBoard's package is not installed: pip install tensorboard; log.csv is written without it"
        ) from None
    return SummaryWriter
