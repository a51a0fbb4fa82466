"""Tests Cog's server with the tiny preset under load and faults: memory, threads and files must not grow, and
the next request must work.

Sends many predictions in a row, runs clients side by side, cancels in every stage, sends endless inputs and
inputs larger than the disk, kills the worker, and blocks the server's only slot. Prints a table and ends with
status 1 if there is a fault. Takes some minutes; needs Linux, where Cog's server runs.
"""

import argparse
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.clips import render  # noqa: E402
from support.server import COG_FOLDERS, Loopback, Server, data_url  # noqa: E402

# A request is cancelled when the log shows the stage; "fetch" logs nothing, and "mux" follows the last step.
STAGES = ("fetch", "decode", "metaclip", "synchformer", "sample", "mux")
GROWTH_MB = 60  # allowed growth of each process between the first fifth of the predictions and the end
SMALL_DISK_MB = 8


class Soak:
    """A server, the requests to it, and the rows of the table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = 0
        self.web = Loopback(folder)
        short = render(folder / "short.mp4", frames=9)
        self.good: dict[str, Any] = {"video": data_url(short), "num_inference_steps": 10, "seed": 1}
        self.long = data_url(render(folder / "long.mp4", frames=250))
        self.server = self.start("main")

    def start(self, name: str, **environment: str) -> Server:
        environment = {"THINKSOUND_PRESET": "tiny", "MALLOC_ARENA_MAX": "1", **environment}
        server = Server(self.folder / name, THINKSOUND_MAX_INPUT_MB="20", **environment)
        server.wait_for("READY", limit_s=600)
        return server

    def row(self, name: str, figures: str, *faults: str) -> None:
        self.faults += len(faults)
        print(f"{name:<34} {figures:<72} {'; '.join(faults) or 'ok'}", flush=True)

    def next_works(self, server: Server | None = None) -> list[str]:
        """Send a small request and return its faults, including files left on the disk."""
        server = server or self.server
        answer = server.predict(**self.good)
        faults = [] if answer["status"] == "succeeded" else [f"the next request: {answer.get('error')}"]
        if server.leftovers != ["thinksound.mp4"]:
            faults.append(f"left: {server.leftovers}")
        return faults

    def used(self) -> Counter[str]:
        """Memory of server and worker in MB, their open files and threads, and the files and folders left."""
        found = Counter[str]()
        for process in (self.server.process.pid, self.server.worker):
            name = "server" if process == self.server.process.pid else "worker"
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            found[f"{name} MB"] = pages * resource.getpagesize() // 2**20
            found["open files"] += len(list(Path(f"/proc/{process}/fd").iterdir()))
            found["threads"] += len(list(Path(f"/proc/{process}/task").iterdir()))
        found["files"] = len(self.server.leftovers)
        found["folders"] = len(list(COG_FOLDERS.iterdir())) if COG_FOLDERS.exists() else 0
        return found

    def many(self, count: int) -> None:
        early, failed, started = Counter[str](), 0, time.monotonic()
        for done in range(count):
            if done == max(count // 5, 1):
                early = self.used()
            failed += self.server.predict(**self.good)["status"] != "succeeded"
        late = self.used()
        grown = [
            f"{name} grew from {early[name]} to {late[name]}"
            for name in late
            if late[name] - early[name] > (GROWTH_MB if "MB" in name else 4)
        ]
        figures = ", ".join(f"{name} {early[name]} -> {late[name]}" for name in late)
        seconds = (time.monotonic() - started) / count
        self.row(
            f"{count} predictions in a row",
            f"{seconds:.1f} s each",
            *([f"{failed} failed"] if failed else []),
        )
        self.row("  what they take", figures, *grown)

    def clients(self, seconds: float, count: int = 8) -> None:
        end, seen = time.monotonic() + seconds, Counter[str]()

        def client() -> None:
            while time.monotonic() < end:
                status, answer = self.server.request("POST", "/predictions", {"input": self.good})
                seen[f"{status} {answer['status']}" if status == 200 else str(status)] += 1
                time.sleep(0.05)

        before = self.used()
        threads = [threading.Thread(target=client) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        others = [f"{name}: {seen[name]}" for name in seen if name not in ("200 succeeded", "409")]
        grown = self.used()["worker MB"] - before["worker MB"]
        faults = others + ([f"worker grew by {grown} MB"] if grown > GROWTH_MB else [])
        faults += [] if seen["200 succeeded"] else ["nothing succeeded"]
        self.row(
            f"{count} clients for {seconds:g} s", ", ".join(f"{n} x {k}" for k, n in seen.items()), *faults
        )
        self.row("  afterwards", "", *self.next_works())

    def cancel(self, stage: str) -> None:
        self.server.wait_for("READY")
        video = f"{self.web.url}/slow/film.mp4" if stage == "fetch" else self.long
        address, logs = f"/predictions/cancel-{stage}", ""
        body = {
            "input": {"video": video, "num_inference_steps": 100},
            "webhook": self.web.url,
            "webhook_events_filter": ["start", "logs", "completed"],
        }
        self.server.request("PUT", address, body, Prefer="respond-async")
        wanted = {"fetch": "", "mux": "sample 100/100"}.get(stage, stage)
        while wanted not in logs:
            logs = self.web.received.get(timeout=300).get("logs", "")
        if stage == "fetch":
            time.sleep(1)
        started = time.monotonic()
        self.server.request("POST", f"{address}/cancel")
        while (event := self.web.received.get(timeout=300))["status"] in ("starting", "processing"):
            pass
        seconds = time.monotonic() - started
        # A request that is almost finished may succeed before the cancellation arrives.
        allowed = ("canceled", "succeeded") if stage == "mux" else ("canceled",)
        faults = [] if event["status"] in allowed else [f"it is {event['status']}"]
        faults += ["took long"] if seconds > 30 else []
        self.row(
            f"cancelled in {stage}", f"{event['status']} after {seconds:.1f} s", *faults, *self.next_works()
        )

    def failing(self, name: str, video: str, message: str, server: Server | None = None) -> None:
        answer = (server or self.server).predict(video=video)
        error = answer.get("error", answer["status"])
        faults = [] if message in error else ["another answer"]
        self.row(name, error.rpartition("InputError: ")[2][:72], *faults, *self.next_works(server))

    def full_disk(self) -> None:
        small = self.folder / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MB}m", "tmpfs", str(small)]
        if subprocess.run(mount, capture_output=True).returncode:
            self.row("a full disk", "left out: only root can mount a small one")
            return
        try:
            with contextlib.closing(self.start("full", TMPDIR=str(small))) as server:
                server.temporary = small
                video = f"data:video/mp4;base64,{'A' * 15_000_000}"
                self.failing("a full disk", video, "no room for it on the disk", server)
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def ends(self, name: str, harm: Callable[[Server], None]) -> None:
        """Check that the server ends by itself after ``harm``, so that a supervisor starts a new one."""
        self.server.wait_for("READY")  # right after a request, the server would refuse the next one
        harm(self.server)
        started = time.monotonic()
        try:
            status = self.server.process.wait(120)
            faults = [] if status else ["status 0"]
            self.row(name, f"ends with {status} after {time.monotonic() - started:.0f} s", *faults)
        except subprocess.TimeoutExpired:
            self.row(name, "", "the server goes on")
        if left := self.server.leftovers:
            self.row("  afterwards", "", f"left: {left}")
        self.server.close()
        self.server = self.start(name.replace(" ", "-"))
        self.row("  the next server", "", *self.next_works())

    def close(self) -> None:
        self.server.close()
        self.web.close()


def kill_worker(server: Server) -> None:
    os.kill(server.worker, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="predictions in a row (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of 8 clients (default: %(default)s)")
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux"):
        sys.exit("scripts/soak: Cog's server runs on Linux alone")
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Soak(Path(folder))) as soak:
        soak.many(arguments.count)
        soak.clients(arguments.seconds)
        for stage in STAGES:
            soak.cancel(stage)
        soak.failing("an input without end", f"{soak.web.url}/endless/film.mp4", "larger than the 20 MB")
        soak.failing("an input that breaks off", f"{soak.web.url}/cut/film.mp4", "does not give it")
        soak.full_disk()
        soak.ends("the worker killed", kill_worker)
        harm = {"id": "a" * 300, "input": soak.good}
        soak.ends(
            "an id that is no file name", lambda server: server.request("POST", "/predictions", harm) and None
        )
    if soak.faults:
        sys.exit(f"{soak.faults} faults")


if __name__ == "__main__":
    main()
