"""The worker's temporary folder: what a request leaves in it, or beside it, goes with the next one."""

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
    """One worker of Cog's server, which runs one request at a time."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="thinksound-")
        self._watchdog = Watchdog()
        self._ended = 0.0  # when the last request ended, in seconds since 1970

    def start(self) -> None:
        """Make the folder that of all temporary files of the process, and have the process watched over."""
        tempfile.tempdir = self._folder.name
        self._watchdog.start(self._folder.name)

    def output(self, ending: str) -> Path:
        """Where the result of a request goes, with an ending such as ".mp4"."""
        return Path(self._folder.name) / f"{OUTPUT}{ending}"

    @contextmanager
    def request(self) -> Iterator[Path]:
        """The empty folder of a request, of which its `output` stays afterwards, until the next one.

        Cog reads the output when the request is over, and never deletes it.
        """
        folder = Path(self._folder.name)
        with self._watchdog.working():
            folder.mkdir(exist_ok=True)  # cleaners of /tmp remove what is old
            _clear(folder)
            remove_folders(before=self._ended)  # the folder of this request is younger
            try:
                yield folder
            finally:
                _clear(folder, keep=OUTPUT)
                self._ended = time.time() - 1  # the clock of a file system may be behind


def _clear(folder: Path, keep: str | None = None) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.stem != keep:
            path.unlink()
