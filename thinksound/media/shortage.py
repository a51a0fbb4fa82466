"""Shortages of the system (memory, threads, open files), told apart from damaged files.

FFmpeg's decoders skip what they cannot decode, whatever the cause: where memory runs out, frames are
missing and the error, if there is one, speaks of invalid data. So room is asked for before each step,
and every error of FFmpeg is looked at before it is taken for damage.
"""

from __future__ import annotations

import errno
import mmap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from ..errors import MediaError, PlacementError

_LARGEST = 2**31  # bytes; FFmpeg calls it a lack of memory, too, where a damaged file asks for more
# What the system says while a file is read that is not the file's fault. Demuxers use other codes
# (EINVAL, EPERM, EAGAIN ...) for damage as well.
_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE}
_WELL = "try again when the system is well"
_THREAD = "a thread could not be started"
# Of RuntimeError, by which PyTorch and Python's threads say it.
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "can't start new thread")


class ReadError(Exception):
    """The system could not read from a file; the message is its own."""


def check_room(size: int) -> None:
    """Find out whether ``size`` bytes can be allocated, without using them.

    Raises:
        MemoryError: they cannot.
    """
    try:
        mmap.mmap(-1, size).close()
    except OSError:
        raise MemoryError from None


def check_shortage(error: av.error.FFmpegError, room: int = 0) -> None:
    """Return where an error of FFmpeg may mean a damaged file.

    Args:
        error: what FFmpeg said.
        room: bytes that the step needs at most.

    Raises:
        MemoryError: memory, or threads, had run out.
        ReadError: the system failed in another way.
    """
    if error.errno in _SYSTEM:
        raise ReadError(said(error)) from error
    if error.errno == errno.EAGAIN and "avcodec_open2" in str(error.filename):
        raise MemoryError(_THREAD) from error
    check_room(_LARGEST if error.errno == errno.ENOMEM else max(room, 2**20))


@contextmanager
def shortages_named(path: Path) -> Iterator[None]:
    """Turn shortages inside of the block into errors for the user.

    Raises:
        PlacementError: out of memory.
        MediaError: the file cannot be read for another reason that lies in the system.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError, SystemError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _MEMORY_WORDS):
            raise
        if isinstance(error, SystemError):  # an extension module that found no memory for its own error
            try:
                check_room(2**24)
            except MemoryError:
                pass
            else:
                raise
        why = f" ({_THREAD})" if _THREAD in str(error) or "new thread" in str(error) else ""
        # The frames that failed hold pixels, and the error that we raise holds those frames.
        traceback.clear_frames(error.__traceback__)
    except ReadError as error:
        raise MediaError(f"{path}: cannot be read ({error}); {_WELL}") from None
    except OSError as error:
        if error.errno in _SYSTEM:
            raise MediaError(f"{path}: cannot be read ({said(error)}); {_WELL}") from None
        if error.errno != errno.ENOMEM:
            raise
        why = ""
    raise PlacementError(f"{path}: out of memory{why}; free some, or give a smaller video")


def said(error: OSError | av.error.FFmpegError) -> str:
    """The system's words for an error, in lower case."""
    words = error.strerror or str(error)
    return words[:1].lower() + words[1:]
