"""A child process that is watched: crashes, hangs and files left behind are endings too."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.paths import ROOT

CLEAN = ("result", "error")
START_S = 300.0  # imports, on a machine that is busy


@dataclass(frozen=True)
class Ending:
    """How a case ended: a clean result, a clean error, or a fault."""

    how: str
    detail: str

    @property
    def is_fault(self) -> bool:
        return self.how not in CLEAN


class Child:
    """One process that runs cases; started anew after it died."""

    def __init__(
        self, log: Path, limit_s: float, command: Sequence[str] = (sys.executable, "-m", "fuzzing.child")
    ):
        self._log = log
        self._limit_s = limit_s
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    def run(self, case: dict[str, Any], folder: Path) -> Ending:
        """Run ``case``, whose ``input`` exists, with its outputs in ``folder``."""
        output, temporary = folder / "output", folder / "temporary"
        output.mkdir()
        temporary.mkdir()
        process = self._ready(temporary.parent)
        assert process.stdin is not None
        process.stdin.write(json.dumps({**case, "output": str(output)}) + "\n")
        process.stdin.flush()
        answer = self._answer(process, self._limit_s)
        if answer is None:
            return self._died(process)
        ending = Ending(*json.loads(answer))
        left = [path.name for path in output.iterdir() if ending.how != "result" or path.name != "out.mp4"]
        if left and not ending.is_fault:
            return Ending("file left", ", ".join(left))
        return ending

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ready(self, folder: Path) -> subprocess.Popen[str]:
        if self._process is None:
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
                "MALLOC_ARENA_MAX": "1",  # an arena for each thread would count as memory
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            }
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                )
            if self._answer(self._process, START_S) is None:
                raise RuntimeError(f"the child did not start: {self._log.read_text()[-2000:]}")
        return self._process

    def _answer(self, process: subprocess.Popen[str], limit_s: float) -> str | None:
        """One line of the child's; None if it died or took too long."""
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], limit_s)[0]:
            return None
        return process.stdout.readline() or None

    def _died(self, process: subprocess.Popen[str]) -> Ending:
        hung = process.poll() is None
        try:
            process.wait(5 if not hung else 0.2)
            hung = False
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        self._process = None
        said = self._log.read_text(errors="replace")[-2000:]
        if hung:
            return Ending("hang", f"no answer after {self._limit_s:g} s; {said}")
        number = -process.returncode
        name = signal.Signals(number).name if number > 0 else f"exit status {process.returncode}"
        return Ending("crash", f"{name}; {said}")
