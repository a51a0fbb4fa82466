"""The demo: a held-out synthetic clip, its sound, the agreement of their onsets, and a picture of both."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support.paths import ROOT

from thinksound.errors import InputError, OutputError
from thinksound.evaluation.made.plot import plot_sound

pytestmark = pytest.mark.slow

RATE = 16_000


def demo(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_demo_says_how_its_onsets_agree_and_draws_them(tmp_path):
    done = demo("--steps", "8", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    made, generated, onsets, picture = done.stdout.splitlines()
    assert made.startswith("Made      outputs/standard-000003.mp4: ") and "ball" in made
    assert generated.startswith("Generated outputs/standard-000003_sound.mp4 in ")
    assert " of 6 within 50 ms" in onsets and onsets.endswith("(of the true sound 1.00)")
    f1 = re.search(r"heard elsewhere: F1 (\d\.\d\d), ", onsets)
    assert f1 is not None and float(f1[1]) >= 0.9, onsets  # measured: 1.00; one bounce missed gives 0.91
    assert picture == "Picture   outputs/standard-000003_sound.png"
    with av.open(str(tmp_path / "outputs" / "standard-000003_sound.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.audio[0].rate == RATE
    with Image.open(tmp_path / "outputs" / "standard-000003_sound.png") as image:
        assert image.size == (1100, 800)


def test_the_demo_refuses_clips_that_training_has_seen(tmp_path):
    done = demo("--clip", 500_000, folder=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("demo: error: --clip 500000: give 0 to 499999")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clicks() -> np.ndarray:
    sound = np.zeros((2, 2 * RATE), dtype=np.float32)
    sound[:, [8_000, 20_000]] = 0.9
    return sound


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_true_events_are_lines_at_their_times_through_every_panel(clicks, tmp_path):
    onsets = [0.25, 0.75, 1.75]
    for name, drawn in (("without", []), ("with", onsets)):
        plot_sound(tmp_path / name, clicks, clicks, RATE, drawn, [0.5], "clicks")
    differs = (pixels(tmp_path / "without") != pixels(tmp_path / "with")).any(axis=-1)  # (H, W)
    columns = np.flatnonzero(differs.mean(axis=0) > 0.6)
    lines = [group.mean() for group in np.split(columns, np.flatnonzero(np.diff(columns) > 2) + 1)]
    assert len(lines) == len(onsets)
    assert np.diff(lines) / np.diff(onsets) == pytest.approx((lines[-1] - lines[0]) / 1.5, abs=3)
    assert lines[-1] - lines[0] > 600  # of 1100 pixels for 1.5 of 2 s


def test_the_picture_changes_with_either_sound_and_with_what_is_heard(clicks, tmp_path):
    def draw(generated: np.ndarray, true: np.ndarray, found: list[float]) -> np.ndarray:
        plot_sound(tmp_path / "picture.png", generated, true, RATE, [0.5], found, "clicks")
        return pixels(tmp_path / "picture.png")

    silence = np.zeros_like(clicks)
    first = draw(clicks, clicks, [0.5])
    assert (first == draw(clicks, clicks, [0.5])).all()
    for other in (draw(silence, clicks, [0.5]), draw(clicks, silence, [0.5]), draw(clicks, clicks, [])):
        assert (first != other).any()


def test_a_picture_that_cannot_be_written_leaves_nothing(clicks, tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        plot_sound(tmp_path / "nowhere" / "picture.png", clicks, clicks, RATE, [], [], "clicks")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_matplotlib_is_said_with_its_remedy(clicks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'thinksound-cog\[evaluation\]'"):
        plot_sound(tmp_path / "picture.png", clicks, clicks, RATE, [], [], "clicks")
