"""Standard output and error that are closed, full, unread or narrow: real processes in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from support.paths import ROOT

from thinksound.commands.progress import Bars
from thinksound.progress import tenths

pytestmark = pytest.mark.slow

LISTING = "weights path --preset tiny"
HELP = "evaluate folder --help"  # has an é
_COMMAND = 'thinksound() { "$PYTHON" -m thinksound "$@"; }'


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of sh in which ``thinksound`` is the command; it ends with that command's exit status."""
    done = subprocess.run(
        ["bash", "-c", f"{_COMMAND}; {command}; exit ${{PIPESTATUS[0]}}"],
        cwd=cwd,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "PYTHONUNBUFFERED": ""}
        | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", [LISTING, "--version", HELP])
def test_a_full_standard_output_is_one_line_and_an_error(command, tmp_path):
    done = shell(f"thinksound {command} >/dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == ("thinksound: error: standard output cannot be written (No space left on device)\n")


@pytest.mark.parametrize("command", [LISTING, HELP])
@pytest.mark.parametrize("where", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "| true"])
def test_streams_that_nobody_reads_are_no_error(command, where, tmp_path):
    done = shell(f"thinksound {command} {where}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_command_line_stays_one_when_nobody_reads_why(tmp_path):
    assert shell("thinksound nonsense 2>/dev/full", tmp_path).returncode == 2


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "Fr\\xe9chet"), ("utf-8", "Fréchet")])
def test_a_letter_that_the_terminal_lacks_is_escaped(encoding, shown, tmp_path):
    assert f" {shown} " in shell(f"thinksound {HELP}", tmp_path, PYTHONIOENCODING=encoding).stdout


def test_the_result_is_whole_when_every_stream_is_closed(clips, tmp_path):
    (tmp_path / "视频.mp4").write_bytes((clips / "cfr25_1p0s.mp4").read_bytes())
    generate = "thinksound generate 视频.mp4 --preset tiny --steps 1 --device cpu"
    # In a code page without these letters, and with descriptors that the video itself could take.
    done = shell(f"{generate} <&- >&- 2>&-", tmp_path, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0
    with av.open(str(tmp_path / "视频_sound.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert sum(1 for _ in container.decode(video=0)) == 25


def test_a_closed_stream_leaves_no_number_for_a_result(tmp_path):
    code = (
        "import sys, thinksound.commands.streams as streams\n"
        "with streams.StandardStreams(), open('result', 'w') as file: sys.exit(file.fileno() <= 2)"
    )
    assert shell(f'thinksound() {{ "$PYTHON" -c "{code}"; }}; thinksound >&- 2>&-', tmp_path).returncode == 0


def test_a_stage_gives_at_most_ten_lines_where_there_is_no_terminal(capsys):
    bars = Bars(quiet=False)
    for done in range(1, 2001):
        bars("sample", done, 2000)
    bars("load", 5, 5)
    wanted = [f"Sampling {200 * tenth:,}/2,000" for tenth in range(1, 11)] + ["Networks 5/5"]
    assert capsys.readouterr().err.splitlines() == wanted
    Bars(quiet=True)("sample", 1, 1)
    assert capsys.readouterr().err == ""


def test_stages_are_throttled_apart():
    seen = []
    report = tenths(lambda *progress: seen.append(progress))
    for done in (1, 2, 3):
        report("a", done, 30)
        report("b", done, 3)
    assert seen == [("b", 1, 3), ("b", 2, 3), ("a", 3, 30), ("b", 3, 3)]
