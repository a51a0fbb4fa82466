"""Standard output and standard error of the command line, made so that writing to them never fails.

A character that the terminal's encoding lacks is written as ``\\u89c6``. If the reader has gone, as in
``thinksound info | head -1``, further output is dropped without an error. If the output cannot be written,
as on a full disk, the command goes on, because its result is a file, and the exit status reports the loss.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from types import TracebackType
from typing import Any, TextIO, cast

EXIT_ERROR = 1


class StandardStreams:
    """Replaces ``sys.stdout`` and ``sys.stderr`` while a command runs."""

    def __enter__(self) -> StandardStreams:
        _fill_closed_descriptors()
        self._before = sys.stdout, sys.stderr
        self._output, self._errors = _Stream(sys.stdout), _Stream(sys.stderr)
        sys.stdout, sys.stderr = cast(TextIO, self._output), cast(TextIO, self._errors)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout, sys.stderr = self._before
        self._output.release()
        self._errors.release()

    def settle(self, status: int) -> int:
        """Return the exit status of a command that ended with ``status``; an error if output was lost."""
        self._output.flush()
        if self._output.lost is None:
            return status
        print(f"thinksound: error: standard output cannot be written ({self._output.lost})", file=sys.stderr)
        return status or EXIT_ERROR


class _Stream:
    """A text stream whose writes never fail; all else is passed on to the stream underneath."""

    def __init__(self, stream: TextIO | None) -> None:
        self.lost: str | None = None  # why output was lost, if a reader may miss it
        self._broken = stream is None  # Python uses None for a stream that was closed from the start
        self._stream: TextIO = io.StringIO() if stream is None else stream
        self._handler: str | None = None
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            self._handler = stream.errors
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._broken:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if not self._broken:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def release(self) -> None:
        """Restore the settings of the stream underneath."""
        self.flush()
        if self._handler is not None and not self._broken:
            cast(io.TextIOWrapper, self._stream).reconfigure(errors=self._handler)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        # Windows reports a pipe without a reader as EINVAL.
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EINVAL:
            self.lost = error.strerror
        # When Python ends, it flushes its buffers again; the null device takes what they still hold.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


def _fill_closed_descriptors() -> None:
    """Open the null device for each of standard input, output and error that the caller has closed.

    Otherwise the next file that is opened would get its number, and what a library writes to standard error
    would end up in a video.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
