"""Result files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av

from ..errors import OutputError

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def check_output(path: Path | str, suffixes: Sequence[str] = (), inputs: Sequence[Path] = ()) -> Path:
    """Find out, before any long work, whether a result can be written here.

    Args:
        path: the file to be written.
        suffixes: endings it may have; any by default.
        inputs: files that it must not replace.

    Raises:
        OutputError: the ending is another one; the folder is missing or not writable; the name is that
            of a directory, a pipe or a device, or of an input.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise OutputError(f"{path}: a file ending in {path.suffix or 'nothing'}; use {' or '.join(suffixes)}")
    try:
        if path.is_dir():
            raise OutputError(f"{path}: this is a directory; give a file name")
        if path.exists() and not path.is_file():
            raise OutputError(
                f"{path}: not a regular file, which a result could replace; choose another name"
            )
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: the folder {path.parent} is not writable; choose another one")
        if any(path.exists() and each.exists() and path.samefile(each) for each in inputs):
            raise OutputError(f"{path}: this would replace an input; choose another name")
    except (OSError, ValueError) as error:  # a name too long, a null character
        raise OutputError(f"{path}: not a usable file name ({error}); choose another one") from None
    return path


def make_folder(path: Path) -> None:
    """Make a folder for results, and those it lies in, where they are missing.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be made a folder ({error}); choose another name") from None


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` and move the file into place when the block succeeds.

    Whatever ends the block early, an interrupt included, removes the temporary file and leaves an
    existing file at ``path`` as it was.

    Raises:
        OutputError: the file cannot be written.
    """
    path = check_output(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        yield temporary
        temporary.replace(path)
    except (OSError, av.error.FFmpegError) as error:
        if error.errno in _FULL:
            message = "no space left on the device; free some or choose another folder"
        else:
            message = f"cannot be written ({error.strerror})"
        raise OutputError(f"{path}: {message}") from error
    finally:
        temporary.unlink(missing_ok=True)
