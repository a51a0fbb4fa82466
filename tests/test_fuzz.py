"""The mutation run of scripts/fuzz: that it sees faults, and that the package shows none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fuzzing.__main__ import damage_film, generator, main
from fuzzing.films import render_films
from fuzzing.pool import Child

pytestmark = pytest.mark.slow

_PLANTED = """
import os, signal, time
from fuzzing import WrongResult
from fuzzing.child import serve
from thinksound.errors import InputError

def run(input, output, case):
    way = case["way"]
    if way == "traceback":
        raise KeyError("planted")
    if way == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if way == "hang":
        time.sleep(60)
    if way == "memory":
        bytearray(4 << 30)
    if way == "memory held":
        len(b"x" * (9 << 28))
    if way == "file left":
        (output / ".half.part").touch()
        raise InputError("refused")
    if way == "wrong result":
        raise WrongResult("planted")
    if way == "error":
        raise InputError("refused")
    (output / "out.mp4").touch()
    return "fine"

serve({"planted": run})
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    started = Child(tmp_path_factory.mktemp("log") / "log", 5.0, [sys.executable, "-c", _PLANTED])
    yield started
    started.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="children are limited by Linux's account")
@pytest.mark.parametrize(
    "way",
    [
        "result",
        "error",
        "traceback",
        "crash",
        "result",
        "hang",
        "memory",
        "memory held",
        "file left",
        "wrong result",
    ],
)
def test_every_ending_is_told_apart(child, tmp_path, way):
    ending = child.run({"kind": "planted", "input": str(tmp_path), "way": way}, tmp_path)
    assert ending.how == way.removesuffix(" held"), ending.detail
    assert ending.is_fault == (way not in ("result", "error"))


def test_a_case_is_the_same_every_time(tmp_path):
    films = render_films(tmp_path / "films")
    made = [damage_film(films, tmp_path, generator(0, "media-7"))[0].read_bytes() for _ in range(2)]
    assert made[0] == made[1]
    assert made[0] not in {film.read_bytes() for film in films}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="children are limited by Linux's account")
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("media", 40),
        ("weights", 15),
        pytest.param("media", 1000, marks=pytest.mark.fuzz),
        pytest.param("weights", 300, marks=pytest.mark.fuzz),
        pytest.param("requests", 100, marks=pytest.mark.fuzz),
    ],
)
def test_what_is_damaged_gives_no_fault(kind, count, tmp_path, capsys):
    assert main(["--only", kind, "--count", str(count), "-o", str(tmp_path)]) == 0, capsys.readouterr().out
