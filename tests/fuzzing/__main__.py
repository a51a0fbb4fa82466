"""Damaged films, weight files and requests, and what becomes of them: see scripts/fuzz --help."""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing.films import render_films
from fuzzing.mutations import BYTES, mutate_box, mutate_element
from fuzzing.pool import Child, Ending

KINDS = ("media", "weights", "requests")
_SHARES = {"media": 0.7, "weights": 0.2, "requests": 0.1}
_KEYS = ("thinksound_light", "vae", "synchformer", "metaclip", "t5")
_LIMIT_S = 120.0  # for one case; the slowest takes a few seconds
_CHECK_EVERY = 5  # requests


@dataclass(frozen=True)
class Outcome:
    """One case and how it ended."""

    case: str  # kind and number
    group: str  # container, key or door
    change: str  # what was damaged
    ending: Ending


def generator(seed: int, case: str) -> random.Random:
    """The random numbers of one case, which depend on nothing else."""
    return random.Random(f"{seed}/{case}")


def damage_film(films: list[Path], folder: Path, rng: random.Random) -> tuple[Path, str]:
    """A damaged copy of one of the films, and what was done to it."""
    film = rng.choice(films)
    data, changes = film.read_bytes(), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        mutation = rng.choice(BYTES)
        if data[4:8] == b"ftyp" and rng.random() < 0.6:
            mutation = mutate_box
        elif data[:4] == b"\x1a\x45\xdf\xa3" and rng.random() < 0.6:
            mutation = mutate_element
        data = mutation(data, rng)
        changes.append(mutation.__name__)
    if rng.random() < 0.05:
        data += rng.choice(films).read_bytes()
        changes.append("joined")
    path = folder / f"input{film.suffix}"
    path.write_bytes(data)
    return path, f"{film.name}: {', '.join(changes)}"


class Fuzzer:
    """Makes cases, runs them and remembers how they ended."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed = seed
        self._folder = folder
        self._films = render_films(folder / "films")

    def run(self, kind: str, numbers: list[int], jobs: int) -> Iterator[Outcome]:
        """The outcomes of the cases of one kind, in ``jobs`` processes beside each other."""
        work = self._requests if kind == "requests" else self._in_a_child
        shares = [numbers] if kind == "requests" else [numbers[start::jobs] for start in range(jobs)]
        with ThreadPoolExecutor(jobs) as pool:
            finished: list[Outcome] = []
            pending = [pool.submit(work, kind, share, finished.append) for share in shares if share]
            given = 0
            while given < len(finished) or not all(each.done() for each in pending):
                if given < len(finished):
                    yield finished[given]
                    given += 1
                else:
                    time.sleep(0.05)
            for each in pending:
                each.result()

    def _in_a_child(self, kind: str, numbers: list[int], report: Callable[[Outcome], None]) -> None:
        child = Child(self._folder / f"log-{kind}-{numbers[0]}", _LIMIT_S)
        with contextlib.closing(child):
            for number in numbers:
                name = f"{kind}-{number}"
                folder = self._folder / name
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                case, group, change = self._make(kind, folder, generator(self._seed, name))
                outcome = Outcome(name, group, change, child.run({"kind": kind, **case}, folder))
                if not outcome.ending.is_fault:
                    shutil.rmtree(folder)
                report(outcome)

    def _make(self, kind: str, folder: Path, rng: random.Random) -> tuple[dict[str, Any], str, str]:
        if kind == "media":
            film, change = damage_film(self._films, folder, rng)
            return {"input": str(film)}, film.suffix, change
        from fuzzing.weights_case import make_weights

        key = rng.choice(_KEYS)
        change = make_weights(folder / "weights", key, rng)
        case = {"input": str(folder / "weights"), "key": key, "convert": rng.random() < 0.25}
        return case, key, change

    def _requests(self, kind: str, numbers: list[int], report: Callable[[Outcome], None]) -> None:
        from fuzzing.bodies import Requests

        folder = self._folder / "server"
        shutil.rmtree(folder, ignore_errors=True)
        film = next(film for film in self._films if film.name == "cfr30_0p3s.mp4")
        requests = Requests(folder, film)
        try:
            for count, number in enumerate(numbers, 1):
                name = f"{kind}-{number}"
                check = count % _CHECK_EVERY == 0 or count == len(numbers)
                report(Outcome(name, "http", "", requests.run(generator(self._seed, name), check)))
        finally:
            left = requests.close()
        if left:
            report(Outcome("requests", "http", "after all of them", Ending("file left", ", ".join(left))))


def table(outcomes: list[Outcome]) -> str:
    """Counts by kind and group, as text."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for each in outcomes:
        group = (each.case.split("-")[0], each.group)
        counts.setdefault(group, Counter())[each.ending.how if not each.ending.is_fault else "fault"] += 1
    lines = [f"{'kind':<10}{'group':<18}{'cases':>7}{'results':>9}{'errors':>8}{'faults':>8}"]
    total: Counter[str] = Counter()
    for (kind, name), count in sorted(counts.items()):
        total += count
        lines.append(_row(kind, name, count))
    lines.append(_row("all", "", total))
    return "\n".join(lines)


def _row(kind: str, name: str, count: Counter[str]) -> str:
    numbers = f"{count['result']:>9}{count['error']:>8}{count['fault']:>8}"
    return f"{kind:<10}{name:<18}{count.total():>7}{numbers}"


def main(argv: list[str] | None = None) -> int:
    """Run the cases that are asked for; returns 1 where there was a fault."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=300, metavar="N", help="cases in all (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: 0)")
    parser.add_argument("--only", choices=KINDS, help="one kind of them")
    parser.add_argument("--case", metavar="NAME", help="one case again, such as media-17; its files are kept")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where inputs of faults are kept")
    arguments = parser.parse_args(argv)

    folder = arguments.output or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    fuzzer = Fuzzer(arguments.seed, folder)
    plan = {
        kind: list(range(arguments.count if arguments.only else round(share * arguments.count)))
        for kind, share in _SHARES.items()
        if arguments.only in (None, kind)
    }
    if arguments.case:
        kind, _, number = arguments.case.partition("-")
        plan = {kind: [int(number)]}
    outcomes: list[Outcome] = []
    start = time.monotonic()
    for kind, numbers in plan.items():
        for outcome in fuzzer.run(kind, numbers, arguments.jobs):
            outcomes.append(outcome)
            if outcome.ending.is_fault or arguments.case:
                how, detail = outcome.ending.how, outcome.ending.detail
                print(f"{how}: {outcome.case} ({outcome.change})\n{_indented(detail)}", flush=True)
            elif len(outcomes) % 100 == 0:
                print(f"{len(outcomes)} cases, {time.monotonic() - start:.0f} s", flush=True)
    print(table(outcomes))
    faults = [each for each in outcomes if each.ending.is_fault]
    took_s = time.monotonic() - start
    print(f"{len(outcomes)} cases of seed {arguments.seed} in {took_s:.0f} s, {len(faults)} faults")
    if faults:
        print(f"again: scripts/fuzz --seed {arguments.seed} --case NAME; inputs of the faults: {folder}")
    elif not arguments.output:
        shutil.rmtree(folder)
    return int(bool(faults))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-25:])


if __name__ == "__main__":
    sys.exit(main())
