"""Judges: the bundled ones have the accuracy in their record, and can be trained again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from thinksound.checkpoints.registry import bundled_dir
from thinksound.errors import WeightsError
from thinksound.evaluation.made.judge_training import (
    JudgeOptions,
    examine,
    held_out_scenes,
    train_judges,
    worsen,
)
from thinksound.evaluation.made.judges import FOLDER, judges_folder, load_judges, onsets_of, relative_level
from thinksound.evaluation.made.spectra import RATE, mel_power
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.seeds import JUDGES, TRAINING
from thinksound.synthetic.sound import synthesise

pytestmark = pytest.mark.slow

SHIPPED = bundled_dir() / FOLDER
SMALL = JudgeOptions(standard=6, hard=6, held_out=3, onset_epochs=1, source_epochs=1)


@pytest.fixture(scope="module")
def judges():
    return load_judges(SHIPPED)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / FOLDER
    train_judges(folder, SMALL)
    return folder


def test_the_shipped_judges_are_small():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1_500_000


@pytest.mark.parametrize("split", ["standard", "hard"])
def test_the_shipped_judges_hear_true_sounds_as_recorded(judges, split):
    recorded = judges.record[split]
    found = examine(judges, held_out_scenes(split, 25))
    for name in ("onset F1 at 50 ms", "kind", "material"):
        assert abs(found[name] - recorded[name]) < (0.05 if split == "standard" else 0.1), name


def test_the_record_reaches_what_measuring_needs(judges):
    standard, hard = judges.record["standard"], judges.record["hard"]
    assert standard["kind"] >= 0.98
    assert standard["material"] >= 0.95
    assert standard["onset F1 at 50 ms"] >= 0.98
    assert standard["onset F1 at 50 ms, plain detector"] >= 0.98
    assert hard["onset F1 at 50 ms"] >= 0.93


def test_seeds_that_train_and_test_judges_are_judges_seeds_and_apart():
    scenes = held_out_scenes("hard", 40)
    assert all(scene.seed in JUDGES for scene in scenes)
    assert min(scene.seed for scene in scenes) >= JUDGES.start + JudgeOptions().hard
    assert not set(JUDGES) & set(TRAINING)


def test_a_gain_changes_nothing_that_is_heard(judges):
    waveform = synthesise(held_out_scenes("standard", 3)[1], RATE)
    loud, quiet = judges.listen(waveform), judges.listen(0.01 * waveform)
    assert np.abs(loud.kinds - quiet.kinds).max() < 1e-2
    assert loud.onsets.tolist() == quiet.onsets.tolist()


def test_silence_holds_no_onset(judges):
    assert len(judges.listen(np.zeros((2, 4 * RATE), dtype=np.float32)).onsets) == 0


def test_a_material_is_one_that_the_kind_can_have(judges):
    for seed in range(JUDGES.start, JUDGES.start + 5):
        judgement = judges.listen(synthesise(make_scene("standard", seed), RATE))
        assert judgement.material_of("engine") == "metal"
        assert judgement.material_of("clock") != "rubber"
        assert len(set(judgement.likeliest_kinds(2))) == 2


def test_peaks_of_likelihood_are_onsets():
    likelihood = np.zeros(100)
    likelihood[[20, 21, 60, 80]] = 0.7, 0.9, 0.3, 0.5
    assert onsets_of(likelihood).tolist() == pytest.approx([0.21, 0.80])


def test_training_again_gives_the_same_judges(trained, tmp_path):
    record = train_judges(tmp_path / FOLDER, SMALL)
    for name in ("onsets.safetensors", "sources.safetensors", "judges.json"):
        assert (tmp_path / FOLDER / name).read_bytes() == (trained / name).read_bytes()
    assert record == json.loads((trained / "judges.json").read_text())
    assert set(load_judges(trained).record) == {"trained on", "tested on", "standard", "hard"}


def test_training_leaves_the_global_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    train_judges(tmp_path, JudgeOptions(standard=2, hard=2, held_out=1, onset_epochs=1, source_epochs=1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_worse_powers_stay_powers_and_differ():
    power = torch.from_numpy(mel_power(synthesise(make_scene("hard", JUDGES.start), RATE))).float()[None]
    worse = worsen(power, torch.Generator().manual_seed(0))
    assert worse.shape == power.shape
    assert (worse >= 0).all()
    difference = relative_level(worse) - relative_level(power)
    assert 0.05 < difference.abs().mean() < 1.0


def test_the_judges_of_a_weights_folder_are_used_when_it_has_some(tmp_path):
    assert judges_folder(tmp_path) == SHIPPED
    (tmp_path / FOLDER).mkdir()  # as interrupted training leaves it
    assert judges_folder(tmp_path) == SHIPPED
    shutil.copytree(SHIPPED, tmp_path / FOLDER, dirs_exist_ok=True)
    assert judges_folder(tmp_path) == tmp_path / FOLDER


def damage(folder, change):
    shutil.copytree(SHIPPED, folder)
    change(folder)
    return folder


def fewer_tensors(folder):
    tensors = load_file(folder / "sources.safetensors")
    tensors.pop("exit.bias")
    save_file(tensors, folder / "sources.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "onsets.safetensors").unlink(), r"onsets.safetensors: missing; copy or"),
        (lambda folder: (folder / "onsets.safetensors").write_bytes(b"x"), "not the weights of a judge"),
        (fewer_tensors, "not the weights of a judge"),
        (lambda folder: (folder / "judges.json").unlink(), r"judges.json: cannot be read"),
    ],
)
def test_judges_that_are_missing_or_damaged_are_refused_with_a_remedy(tmp_path, change, message):
    folder = damage(tmp_path / FOLDER, change)
    with pytest.raises(WeightsError, match=message) as caught:
        load_judges(folder)
    assert "thinksound evaluate judges" in str(caught.value)
