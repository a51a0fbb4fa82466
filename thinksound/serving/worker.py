"""The worker's temporary folder; what a request leaves behind is removed with the next request."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .coglet import remove_folders
from .watchdog import Watchdog

OUTPUT = "thinksound"  # name of a result, without its ending


class Worker:
    """The worker of Cog's server, which runs one request at a time."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="thinksound-")
        self._watchdog = Watchdog()
        self._ended = 0.0  # when the last request ended, in seconds since 1970

    def start(self) -> None:
        """Use the folder for all temporary files of the process, and start the watchdog."""
        tempfile.tempdir = self._folder.name
        self._watchdog.start(self._folder.name)

    def output(self, ending: str) -> Path:
        """Return the path for the result of a request, with an ending such as ".mp4"."""
        return Path(self._folder.name) / f"{OUTPUT}{ending}"

    @contextmanager
    def request(self) -> Iterator[Path]:
        """Yield the empty folder for a request; afterwards remove all but its `output`.

        Cog reads the output after the request and never deletes it, so the next request removes it.
        """
        folder = Path(self._folder.name)
        with self._watchdog.working():
            folder.mkdir(exist_ok=True)  # a system that removes old files in /tmp may have removed it
            _clear(folder)
            remove_folders(before=self._ended)  # the folder of this request is younger
            try:
                yield folder
            finally:
                _clear(folder, keep=OUTPUT)
                self._ended = time.time() - 1  # times of the file system may lag behind the clock


def _clear(folder: Path, keep: str | None = None) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.stem != keep:
            path.unlink()
