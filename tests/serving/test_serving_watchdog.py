"""The process that ends a server which can serve nothing any more, and what else a server leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from thinksound.serving import coglet, watchdog

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="Cog's server runs on Linux"),
]

# Answers every health check with BUSY, as a server does whose only slot is lost.
STUCK_SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "BUSY"}')
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK_SERVER, "cog.server.http"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        monkeypatch.setenv("PORT", process.stdout.readline().strip())
        yield process
        process.kill()


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def watching(
    stuck: subprocess.Popen[str],
    worker: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[bytes], None]]:
    """A running watch() over ``stuck``; called, it says something to it, and closes the pipe for b""."""
    monkeypatch.setattr(watchdog, "PAUSE_S", 0.05)
    monkeypatch.setattr(watchdog, "ANSWER_S", 0.05)
    (tmp_path / "folder").mkdir()
    read, write = os.pipe()
    arguments = (read, worker.pid, stuck.pid, str(tmp_path / "folder"))
    thread = threading.Thread(target=watchdog.watch, args=arguments)
    thread.start()
    closed = []

    def say(what: bytes) -> None:
        if what:
            os.write(write, what)
        else:
            os.close(write)
            closed.append(True)

    yield say
    thread.join(30)
    assert not thread.is_alive()
    os.close(read)
    if not closed:
        os.close(write)


def test_a_server_that_stays_busy_without_a_request_is_killed(
    stuck: subprocess.Popen[str], watching: Callable[[bytes], None], tmp_path: Path
) -> None:
    watching(b"1")  # a request runs: busy is right
    time.sleep(1.5)
    assert stuck.poll() is None
    watching(b"0")
    assert stuck.wait(30) == -signal.SIGKILL
    assert not (tmp_path / "folder").exists()


def test_a_worker_that_is_stopped_may_yet_get_to_its_request(
    stuck: subprocess.Popen[str], worker: subprocess.Popen[bytes], watching: Callable[[bytes], None]
) -> None:
    worker.send_signal(signal.SIGSTOP)
    watching(b"0")
    time.sleep(1.5)
    assert stuck.poll() is None
    worker.send_signal(signal.SIGCONT)
    assert stuck.wait(30) == -signal.SIGKILL
    assert worker.poll() is None  # it is no parent of what watches: its number may be another one's by now


def test_a_worker_that_computes_is_not_idle() -> None:
    before = watchdog._activity(os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert watchdog._activity(os.getpid()) != before
    assert watchdog._activity(0) == []


def test_a_server_whose_worker_is_gone_is_killed(
    stuck: subprocess.Popen[str], watching: Callable[[bytes], None]
) -> None:
    watching(b"1")
    watching(b"")
    assert stuck.wait(30) == -signal.SIGKILL


def test_a_worker_that_says_goodbye_leaves_the_server_alone(
    stuck: subprocess.Popen[str], watching: Callable[[bytes], None], tmp_path: Path
) -> None:
    watching(b"1q")
    time.sleep(0.5)
    assert stuck.poll() is None
    assert (tmp_path / "folder").exists()


def test_nothing_is_watched_where_no_server_started_this_process(tmp_path: Path) -> None:
    alone = watchdog.Watchdog()
    alone.start(str(tmp_path))
    with alone.working():
        assert alone._pipe is None


def test_only_a_python_that_runs_the_server_is_one(stuck: subprocess.Popen[str]) -> None:
    assert watchdog.is_server(stuck.pid)
    with subprocess.Popen(["sleep", "60"]) as other:
        assert not watchdog.is_server(other.pid)
        other.kill()


def test_empty_folders_of_earlier_predictions_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coglet, "PREDICTIONS", tmp_path)
    for name, time_s in (("old", 100), ("full", 100), ("young", 300)):
        for inner in ("inputs", "outputs"):
            (tmp_path / name / inner).mkdir(parents=True)
        if name == "full":
            (tmp_path / name / "inputs" / "spill.json").touch()
        os.utime(tmp_path / name, (time_s, time_s))
    names = {"old", "full", "young"}
    monkeypatch.setattr(coglet, "is_server", lambda process: process == os.getpid())
    coglet.remove_folders(before=200)  # another server is there
    assert {path.name for path in tmp_path.iterdir()} == names
    monkeypatch.setattr(coglet, "is_server", lambda process: process == os.getppid())
    coglet.remove_folders(before=200)
    assert {path.name for path in tmp_path.iterdir()} == names - {"old"}
