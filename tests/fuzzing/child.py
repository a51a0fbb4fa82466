"""The process in which cases run: the package's own code, with little memory, one case after the other.

Reads a JSON object a line from standard input and answers with one: how the case ended.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fuzzing import WrongResult

MEMORY = 2 << 30  # bytes; what the whole process may hold
# Of address space, beyond what the process takes when it is ready. The package takes a lack of memory for
# damage where 2 GiB could be had: there must be room for that.
SPACE = 3 << 30

Run = Callable[[Path, Path, dict[str, Any]], str]  # (input, folder for the outputs, case) -> what came out


def serve(runs: Mapping[str, Run]) -> None:
    """Answer cases until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPACE, size + SPACE))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        ending, detail = run_case(runs[case["kind"]], case)
        if (peak := _peak()) > MEMORY:
            ending, detail = "memory", f"{peak / 1e9:.1f} GB; {ending}: {detail}"
        print(json.dumps([ending, detail]), file=answers, flush=True)


def _peak() -> int:
    """The most memory, in bytes, that the process has held."""
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in each]
    return int(line.split()[1]) * 1024


def run_case(run: Run, case: dict[str, Any]) -> tuple[str, str]:
    """How the case ended, and what to say of it."""
    from thinksound.errors import ThinkSoundError

    try:
        return "result", run(Path(case["input"]), Path(case["output"]), case)
    except WrongResult as error:
        return "wrong result", str(error)
    except ThinkSoundError as error:
        message = str(error)
        if "out of memory" in message:
            return "memory", message
        if not message.isprintable() and any(ord(letter) < 32 and letter != "\n" for letter in message):
            return "wrong result", f"a message with control characters: {message!r}"
        if len(message) > 2000:
            return "wrong result", f"a message of {len(message)} characters: {message[:300]}"
        return "error", f"{type(error).__name__}: {message}"
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException:  # whatever it is: that is what is looked for
        return "traceback", traceback.format_exc()


def main() -> None:
    from fuzzing.film_case import run_film
    from fuzzing.weights_case import run_weights

    serve({"media": run_film, "weights": run_weights})


if __name__ == "__main__":
    main()
