"""Checks names of input and output files, and writes result files whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import av

from ..errors import MediaError, OutputError, PlacementError
from .shortage import said

_SAID = {
    errno.ENOSPC: "no space left on the device; free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "larger than the file system or the limit on file sizes (ulimit -f) allows; "
    "choose another folder or raise the limit",
    errno.EMFILE: "too many open files; close some or raise the limit (ulimit -n)",
}

# At least two letters before the colon: "C:/clip.mp4" is a Windows path.
_URL = re.compile(
    r"[a-z][a-z0-9+.-]+:/|(data|blob|magnet):|www\.|(m\.)?(youtube\.com|youtu\.be)/", re.IGNORECASE
)
_SHOWN = 200  # characters of a URL; a data URL holds the whole file


def local_path(name: Path | str) -> Path:
    """Return the path of an input file, which need not exist.

    Raises:
        MediaError: the name is a URL, "-" for standard input, a pattern, or empty; the message shows it as it
            was given.
    """
    text, path = str(name), Path(name)
    if not text:
        raise MediaError("the name of the video is empty; give a file")
    if exists(path):
        return path
    if text == "-":
        raise MediaError(
            "-: standard input cannot be used, because a video is read more than once; save it to a file "
            "first"
        )
    if _URL.match(text):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        if text.lower().startswith("file:"):
            advice = f"give the path alone, {url2pathname(urlsplit(text).path)}, or download the file first"
        else:
            advice = "download or save it to a file first and give the name of that file"
        raise MediaError(f"{shown}: this is a URL, and only files on this computer are read; {advice}")
    if "*" in text or "?" in text:
        raise MediaError(f"{text}: no file matches this pattern; check the folder and the ending")
    return path


def exists(path: Path) -> bool:
    """Whether something is at ``path``; False if the name is too long or the folder is not accessible."""
    try:
        return path.exists()
    except OSError:
        return False


def free_name(path: Path) -> Path:
    """Return ``path``, or if it exists, the first of ``NAME-2``, ``NAME-3`` … that does not."""
    free, number = path, 1
    while exists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def check_output(path: Path | str, suffixes: Sequence[str] = (), inputs: Sequence[Path] = ()) -> Path:
    """Check whether a result can be written to ``path``; called before any long work.

    Args:
        path: the file to be written.
        suffixes: allowed endings, in lower case; any by default.
        inputs: files that it must not replace.

    Raises:
        OutputError: the ending is not allowed; the folder is missing or not writable; the name is that of a
            directory, a pipe, a device or an input.
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
    except OSError as error:  # the name is too long, or the folder not accessible
        raise OutputError(f"{path}: not a usable file name ({said(error)}); choose another one") from None
    except ValueError as error:  # a null character
        raise OutputError(f"{path}: not a usable file name ({error}); choose another one") from None
    return path


def make_folder(path: Path) -> None:
    """Create a folder for results and its parents, as far as they are missing.

    Raises:
        OutputError: the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be made a folder ({error}); choose another name") from None


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, and move that file to ``path`` when the block succeeds.

    If an error or an interrupt ends the block, the temporary file is removed, and a file that exists at
    ``path`` does not change.

    Raises:
        OutputError: the file cannot be written.
        PlacementError: out of memory.
    """
    path = check_output(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        yield temporary
        temporary.replace(path)
    except MemoryError as error:
        raise PlacementError(
            f"{path}: out of memory while it was written; free some, or give a smaller video"
        ) from error
    except (OSError, av.error.FFmpegError) as error:
        message = _SAID.get(error.errno or 0) or f"cannot be written ({said(error)})"
        raise OutputError(f"{path}: {message}") from error
    finally:
        temporary.unlink(missing_ok=True)
