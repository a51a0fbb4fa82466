"""Parallel download of several files, each into a partial file that later calls continue.

Worker threads receive; the calling thread reports progress, moves finished files into place and watches for
stalls: a file that receives less than 1 KiB a second for `hub.stall_s` seconds fails. The first failure stops
all files, and what arrived is kept. The threads are daemons, because a slow connection cannot be interrupted;
a thread that is left behind writes nothing more.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

from ..errors import WeightsError
from . import hub, xet
from .checksums import file_sha256
from .hub import constants

logger = logging.getLogger(__name__)

_PARALLEL = 4
_ATTEMPTS = 6  # in a row without a new byte
_PAUSE_S = 1.0  # between attempts
_MIN_RATE = 1024  # bytes a second
_POLL_S = 0.1


class _Stopped(Exception):
    """Ends a worker, because another file failed or the caller gave up."""


@dataclass
class Transfer:
    """The state of one file's download."""

    remote: hub.Remote
    partial: Path
    target: Path
    label: str
    done: int = 0
    try_xet: bool = True
    started: bool = False
    received: bool = False  # all bytes are here; hashing follows, which cannot stall
    reported: int = -1
    mark: tuple[float, int] = (0.0, 0)  # time when `_MIN_RATE` was last met, and the bytes then
    error: BaseException | None = None


def transfer(
    files: Sequence[Transfer],
    finish: Callable[[Transfer], None],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Download ``files``, and call ``finish`` for each one when its hash has been verified.

    ``progress(label, bytes done, bytes in all)`` and ``finish`` are called in the calling thread.

    Raises:
        WeightsError: the content is not what was announced (it is deleted), the hub refuses, or the
            connection fails or stalls (what arrived is kept).
        OSError: the disk fails.
    """
    stop = threading.Event()
    waiting = deque(files)
    finished: SimpleQueue[Transfer] = SimpleQueue()
    workers = [
        threading.Thread(target=_work, args=(waiting, finished, stop), daemon=True)
        for _ in range(min(_PARALLEL, len(files)))
    ]
    for worker in workers:
        worker.start()
    try:
        left = len(files)
        while left:
            try:
                file: Transfer | None = finished.get(timeout=_POLL_S)
            except Empty:
                file = None
            for each in files:
                _report(each, progress)
                _watch(each)
            if file is not None:
                if file.error is not None:
                    raise file.error
                finish(file)
                left -= 1
    finally:
        stop.set()
        for worker in workers:
            worker.join(1.0)


def _report(file: Transfer, progress: Callable[[str, int, int], None] | None) -> None:
    done = file.done
    if progress is not None and done != max(file.reported, 0):
        file.reported = done
        progress(file.label, done, file.remote.size)


def _watch(file: Transfer) -> None:
    now, (since, then) = time.monotonic(), file.mark
    if not file.started or file.received:
        return
    if not since or file.done < then or file.done - then >= _MIN_RATE * hub.stall_s():
        file.mark = (now, file.done)
    elif now - since > hub.stall_s():
        raise WeightsError(
            f"{file.remote.name}: {constants.ENDPOINT} sent {file.done - then:,} bytes in the last "
            f"{hub.stall_s():.0f} s ({file.done:,} of {file.remote.size:,} are here); what arrived is kept, "
            "run the same command again to go on, or set HF_HUB_DOWNLOAD_TIMEOUT higher for a slow connection"
        )


def _work(waiting: deque[Transfer], finished: SimpleQueue[Transfer], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            file = waiting.popleft()
        except IndexError:
            return
        try:
            _receive(file, stop)
        except _Stopped:
            return
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = file.label
            file.error = error
        finished.put(file)


def _receive(file: Transfer, stop: threading.Event) -> None:
    remote = file.remote
    with file.partial.open("ab") as stream:
        if stream.tell() > remote.size:
            _restart(stream)
        file.done = stream.tell()
        file.started = True
        failures = restarts = 0
        while file.done < remote.size:
            before = file.done
            try:
                with _source(file) as (first, pieces):
                    if first != file.done:
                        restarts += 1
                        _restart(stream)
                        file.done = before = 0
                    for piece in pieces:
                        if stop.is_set():
                            raise _Stopped
                        if len(piece) > remote.size - file.done:
                            stream.close()
                            file.partial.unlink()
                            raise _too_much(remote)
                        stream.write(piece)
                        file.done += len(piece)
                if file.done < remote.size:
                    raise hub.TransientError("it ended early")
            except hub.TransientError as error:
                stream.flush()
                failures = failures + 1 if file.done <= before else 1
                if failures >= _ATTEMPTS or restarts >= _ATTEMPTS:
                    raise WeightsError(
                        f"{remote.name}: the connection to {constants.ENDPOINT} failed ({error}); "
                        "what arrived is kept, run the same command again to go on"
                    ) from error
                if stop.wait(_PAUSE_S):
                    raise _Stopped from None
    file.received = True
    if not is_intact(file.partial, remote):
        file.partial.unlink()
        raise WeightsError(
            f"{remote.name}: what {constants.ENDPOINT} sent is not what it announced (hash "
            f"{remote.content_id[:16]}…); it was deleted, download it again"
        )


def _too_much(remote: hub.Remote) -> WeightsError:
    return WeightsError(
        f"{remote.name}: {constants.ENDPOINT} sends more than the {remote.size:,} bytes that it announced; "
        "it was deleted, download it again or use another mirror"
    )


@contextmanager
def _source(file: Transfer) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yields a position and the bytes from there on: by Xet, once, if it is offered, else by HTTP."""
    with hub.content(file.remote, file.done) as (first, response):
        offer = xet.offered(response) if file.try_xet else None
        if offer is None:
            yield first, response.iter_raw()
            return
    file.try_xet = False
    with closing(xet.pieces(offer, file.remote.size, file.done)) as pieces:
        yield file.done, pieces


def _restart(stream: BinaryIO) -> None:
    stream.seek(0)
    stream.truncate()


def is_intact(path: Path, remote: hub.Remote) -> bool:
    """Whether a file has the announced size and hash."""
    return path.stat().st_size == remote.size and content_hash(path, remote.content_id) == remote.content_id


def content_hash(path: Path, like: str) -> str:
    """Returns the SHA-256 of a file, or git's hash of it, whichever has as many digits as ``like``."""
    if len(like) == 64:
        return file_sha256(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
