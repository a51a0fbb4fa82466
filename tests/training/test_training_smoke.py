"""Training runs that take minutes, started by ``scripts/train-smoke``: not part of the default tests.

The first one finds what no unit test does, such as a sign that is wrong in two places or a condition that
is not passed on: the onsets are then at chance level.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from support.paths import ROOT

from thinksound.data.prepare import prepare_clips
from thinksound.data.shards import PreparedClips
from thinksound.data.sources import MadeSource
from thinksound.evaluation.made.onsets import detect_onsets, match_onsets, total, true_onsets
from thinksound.families.find import family_of
from thinksound.families.flow import FlowFamily
from thinksound.families.protocol import TRANSFORMER
from thinksound.loading import load
from thinksound.models.flow import FlowTransformer
from thinksound.pipeline import Pipeline
from thinksound.presets import TINY
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.seeds import STEERING, TRAINING
from thinksound.training.flow import given_features
from thinksound.training.loop import CHECKPOINT, read_checkpoint
from thinksound.training.options import DiTRun, FlowOptions, LoopOptions, Start
from thinksound.training.runs import train_dit

pytestmark = pytest.mark.slow

CLIPS, MEASURED = 200, 24
STEPS = 400
F1, CHANCE = 0.85, 0.35  # measured: 0.975, 0.147
TRAIN_TINY = ROOT / "scripts" / "train_tiny.py"


def strikes(seeds: range, count: int) -> list[int]:
    """The first seeds whose scenes have impacts only, so that plain onset detection is right."""
    found = []
    for seed in seeds:
        scene = make_scene("standard", seed)
        if all(len(source.onsets) for source in scene.sources):
            found.append(seed)
        if len(found) == count:
            break
    return found


def prepared(pipeline: Pipeline, seeds: list[int], folder: Path) -> PreparedClips:
    sources = [MadeSource("standard", seed) for seed in seeds]
    prepare_clips(pipeline, sources, folder, workers=2)
    return PreparedClips(folder)


@pytest.mark.training
def test_a_short_training_puts_sounds_where_they_are_seen(tmp_path):
    pipeline = load("tiny", device="cpu")
    prepared(pipeline, strikes(TRAINING, CLIPS), tmp_path / "clips")
    seeds = strikes(STEERING, MEASURED)
    measured = prepared(pipeline, seeds, tmp_path / "measured")

    run = DiTRun(
        preset="tiny",
        data=tmp_path / "clips",
        folder=tmp_path / "run",
        loop=LoopOptions(STEPS, warmup=40, final_rate=0.05, ema_decay=0.99, save_every=STEPS),
        flow=FlowOptions(batch=16, learning_rate=2e-3),
        start=Start("scratch"),
        device="cpu",
    )
    train_dit(run)
    family = cast(FlowFamily, family_of(TINY))
    network = cast(FlowTransformer, family.create(TRANSFORMER))
    network.load_state_dict(read_checkpoint(tmp_path / "run" / CHECKPOINT)["averages"]["dit"])

    batch = measured.batch(range(len(measured)))
    noise = torch.randn(batch.latent_mean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = given_features(network, family.conditions, batch)
        latents = family.follow(network, features, noise, 16, TINY.guidance_scale, lambda step: None)
        found = [
            detect_onsets(pipeline.decode_audio(one).numpy(), family.sound.sample_rate) for one in latents
        ]
    true = [true_onsets(make_scene("standard", seed)) for seed in seeds]
    own = total(match_onsets(a, b, 0.05) for a, b in zip(true, found, strict=True))
    # The same sounds compared with other clips: the score of rhythm alone.
    other = total(match_onsets(a, b, 0.05) for a, b in zip(true, found[1:] + found[:1], strict=True))
    print(f"F1 within 50 ms: {own.f1:.3f}, under other clips {other.f1:.3f}")
    assert own.f1 >= F1
    assert other.f1 <= CHANCE


@pytest.mark.training
def test_the_recipe_of_tiny_runs_from_its_start_to_its_end(tmp_path):
    command = [sys.executable, TRAIN_TINY, tmp_path, "--trial"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr

    start, trained = tmp_path / "start" / "tiny", tmp_path / "weights" / "tiny"
    files = [file.relative_to(start) for file in start.rglob("*.safetensors")]
    assert len(files) == 5
    unchanged = [file for file in files if (start / file).read_bytes() == (trained / file).read_bytes()]
    assert not unchanged
    load("tiny", tmp_path / "weights", device="cpu")  # verifies checksums, names and sizes
    with (tmp_path / "log.csv").open(newline="") as stream:
        stages = {row["stage"] for row in csv.DictReader(stream)}
    assert stages == {"vae", "refined-vae", "sync", "pictures", "texts", "dit", "refined-dit"}
    assert (tmp_path / "curve.png").stat().st_size > 10_000
