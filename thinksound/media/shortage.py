"""Tells shortages of the system (memory, threads, open files) apart from damaged files.

FFmpeg's decoders skip what they cannot decode, whatever the cause: when memory runs out, frames are missing,
and the error, if there is one, says "invalid data". So the callers check before each step that memory can be
allocated, and check every error of FFmpeg for a shortage before they treat it as damage.
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

_LARGEST = 2**31  # bytes; FFmpeg also reports a lack of memory when a damaged file asks for more than this
# Error codes of the system that are not the file's fault. Demuxers use others (EINVAL, EPERM, EAGAIN ...)
# for damage as well.
_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE}
_WELL = "try again when the system is well"
_THREAD = "a thread could not be started"
# Parts of the messages of RuntimeError with which PyTorch and Python's threads report a shortage.
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "can't start new thread")


class ReadError(Exception):
    """The system could not read from a file; the message is the system's."""


def check_room(size: int) -> None:
    """Check that ``size`` bytes can be allocated, without using them.

    Raises:
        MemoryError: they cannot be allocated.
    """
    try:
        mmap.mmap(-1, size).close()
    except OSError:
        raise MemoryError from None


def check_shortage(error: av.error.FFmpegError, room: int = 0) -> None:
    """Raise if an error of FFmpeg comes from a shortage; return if it may mean a damaged file.

    Args:
        error: an error raised by PyAV.
        room: bytes that the failed step needs at most.

    Raises:
        MemoryError: memory or threads ran out.
        ReadError: the system failed in another way.
    """
    if error.errno in _SYSTEM:
        raise ReadError(said(error)) from error
    if error.errno == errno.EAGAIN and "avcodec_open2" in str(error.filename):
        raise MemoryError(_THREAD) from error
    check_room(_LARGEST if error.errno == errno.ENOMEM else max(room, 2**20))


@contextmanager
def shortages_named(path: Path) -> Iterator[None]:
    """Turn shortages inside the block into errors for the user.

    Raises:
        PlacementError: out of memory.
        MediaError: the system cannot read the file for another reason.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError, SystemError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _MEMORY_WORDS):
            raise
        if isinstance(error, SystemError):  # from an extension module that had no memory for its own error
            try:
                check_room(2**24)
            except MemoryError:
                pass
            else:
                raise
        why = f" ({_THREAD})" if _THREAD in str(error) or "new thread" in str(error) else ""
        # The traceback's stack frames hold pixels; without this, the error raised below would keep them.
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
    """Return the system's words for an error; the first letter is in lower case."""
    words = error.strerror or str(error)
    return words[:1].lower() + words[1:]
