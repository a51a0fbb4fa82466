"""A small process that ends Cog's server when it can serve nothing any more.

Cog's server and the worker with the networks are two processes. When the worker dies, and when a request
cannot be handed to it (its id is no file name, the disk is full), the server goes on without it, refuses
every request with status 409 and never ends, so that nothing starts it again. This process, a child of the
worker, sees both and kills the server, whose supervisor then starts a new one. A worker without its server,
which would keep its memory, is killed too.

It runs as a script with the standard library alone, on Linux, where Cog's server runs.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ANSWER_S = 3.0  # for the server to tell a waiting client, or a webhook, that the worker has died
PAUSE_S = 5.0  # between two looks at a server whose worker does nothing
STUCK = 9  # looks in a row, 45 s: sending an output away takes the server up to 25 s after the worker's end


class Watchdog:
    """The worker's end: starts the process, and tells it when a request runs."""

    def __init__(self) -> None:
        self._pipe: int | None = None

    def start(self, folder: str) -> None:
        """Watch over this process and the server that started it; remove ``folder`` when one of them dies.

        Does nothing where no server of Cog has started this process.
        """
        server = os.getppid()
        if not is_server(server):
            return
        read, self._pipe = os.pipe()
        # What is inherited must not hold the server's own pipes open: by their end it learns of a death.
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__, *map(str, (read, os.getpid(), server)), folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read,),
        )
        os.close(read)
        atexit.register(self._say, b"q")

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While a request runs."""
        self._say(b"1")
        try:
            yield
        finally:
            self._say(b"0")

    def _say(self, what: bytes) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                os.write(self._pipe, what)


def is_server(process: int) -> bool:
    """Whether a process is Cog's HTTP server."""
    command = _command(process)
    return b"cog.server.http" in command and b"python" in command[0]  # not a tini or timeout that runs it


def _command(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _activity(process: int) -> list[bytes]:
    """State, page faults and processor time of a process: they stay the same while it waits to be asked."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
    return [fields[each - 3] for each in (3, 12, 14, 15)]  # as proc(5) counts them


def _address(server: int) -> tuple[str, int]:
    """Where a server listens, as seen from here."""
    command = [word.decode(errors="replace") for word in _command(server)]
    host = command[command.index("--host") + 1] if "--host" in command[:-1] else "0.0.0.0"
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(os.environ.get("PORT", "5000"))


def _is_busy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/health-check")
        return json.loads(connection.getresponse().read())["status"] == "BUSY"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False
    finally:
        connection.close()


def watch(pipe: int, worker: int, server: int, folder: str) -> None:
    """Return when the worker has said goodbye, or when it and the server are no more."""
    host, port = _address(server)
    working, looks, before = False, 0, _activity(worker)
    while is_server(server) and looks < STUCK:
        if select.select([pipe], [], [], PAUSE_S)[0]:
            said = os.read(pipe, 4096)
            if not said:  # the worker is gone without a word
                time.sleep(ANSWER_S)
                break
            if b"q" in said:
                return
            working, looks = said.endswith(b"1"), 0
        else:
            # A worker that is stopped, swapped out or slow may yet get to the request.
            now = _activity(worker)
            waits = now == before and now[:1] != [b"T"]
            looks = looks + 1 if waits and not working and _is_busy(host, port) else 0
            before = now
    if os.getppid() == worker:  # it turns in a circle when its server is gone, and keeps its memory
        _kill(worker, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    # SIGKILL gives a status that is not zero; the first process of a container only hears SIGTERM.
    for each in (signal.SIGKILL, signal.SIGTERM):
        if is_server(server):
            _kill(server, each)


def _kill(process: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, how)


if __name__ == "__main__":
    pipe, worker, server = map(int, sys.argv[1:4])
    watch(pipe, worker, server, sys.argv[4])
