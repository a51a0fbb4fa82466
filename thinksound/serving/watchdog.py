"""A small process that ends Cog's server when it cannot serve requests any more.

Cog's server and the worker with the networks are two processes. When the worker dies, or when a request
cannot be handed to it (its id is not a valid file name, or the disk is full), the server goes on without it,
refuses every request with status 409, and never ends, so that no supervisor restarts it. This process, a
child of the worker, detects both and kills the server, so that its supervisor starts a new one. It also kills
a worker whose server has died, which would keep its memory.

It runs as a script, needs only the standard library, and works on Linux, where Cog's server runs.
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

ANSWER_S = 3.0  # for the server to tell a waiting client or a webhook that the worker has died
PAUSE_S = 5.0  # between two checks of a server whose worker does nothing
STUCK = 9  # checks in a row, 45 s; after the worker's end, sending the output takes the server up to 25 s


class Watchdog:
    """The worker's side: starts the process, and tells it when a request runs."""

    def __init__(self) -> None:
        self._pipe: int | None = None

    def start(self, folder: str) -> None:
        """Watch this process and the server that started it; remove ``folder`` when one of them dies.

        Does nothing if this process was not started by Cog's server.
        """
        server = os.getppid()
        if not is_server(server):
            return
        read, self._pipe = os.pipe()
        # The process must not inherit the worker's pipes: the server learns from their end that it has died.
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
        """Tells the process that a request runs inside the block."""
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
    return b"cog.server.http" in command and b"python" in command[0]  # not `tini` or `timeout` around it


def _command(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _activity(process: int) -> list[bytes]:
    """State, page faults and processor time of a process; they do not change while it waits for a request."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
    return [fields[each - 3] for each in (3, 12, 14, 15)]  # numbered as in proc(5)


def _address(server: int) -> tuple[str, int]:
    """Host and port at which a server can be reached from this machine."""
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
    """Return when the worker ends by itself; if one dies or the server is stuck, end both, remove ``folder``.

    Args:
        pipe: file descriptor; the worker writes "1" and "0" around a request, and "q" when it ends.
        worker: process id.
        server: process id.
        folder: the worker's temporary folder.
    """
    host, port = _address(server)
    working, looks, before = False, 0, _activity(worker)
    while is_server(server) and looks < STUCK:
        if select.select([pipe], [], [], PAUSE_S)[0]:
            said = os.read(pipe, 4096)
            if not said:  # the worker has died without writing "q"
                time.sleep(ANSWER_S)
                break
            if b"q" in said:
                return
            working, looks = said.endswith(b"1"), 0
        else:
            # A worker that is stopped, swapped out or slow may still run the request.
            now = _activity(worker)
            waits = now == before and now[:1] != [b"T"]
            looks = looks + 1 if waits and not working and _is_busy(host, port) else 0
            before = now
    if os.getppid() == worker:  # without its server the worker runs in an endless loop and keeps its memory
        _kill(worker, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    # SIGKILL gives a status that is not zero, but only SIGTERM reaches the first process of a container.
    for each in (signal.SIGKILL, signal.SIGTERM):
        if is_server(server):
            _kill(server, each)


def _kill(process: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, how)


if __name__ == "__main__":
    pipe, worker, server = map(int, sys.argv[1:4])
    watch(pipe, worker, server, sys.argv[4])
