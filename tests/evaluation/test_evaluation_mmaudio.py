"""Evaluation on synthetic clips of a family that is mono and reads no chain of thought."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import save_file

import thinksound
from thinksound.cli import main
from thinksound.data.prepare import prepare_clips
from thinksound.data.shards import PreparedClips
from thinksound.data.sources import made_sources
from thinksound.evaluation.made.rows import TEXTS, Recipe
from thinksound.evaluation.made.sounds import Sounds
from thinksound.evaluation.made.spectra import RATE
from thinksound.pipeline import Pipeline
from thinksound.synthetic.make import CLIP_S
from thinksound.synthetic.seeds import MEASURED
from thinksound.synthetic.texts import describe

pytestmark = pytest.mark.slow

MODEL = Recipe(guidance_scale=2.0, steps=1)
CONTRADICTED = Recipe(guidance_scale=2.0, steps=1, contradicted=TEXTS)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return thinksound.load("mmaudio-tiny", device="cpu")


@pytest.fixture(scope="module")
def sounds(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    prepare_clips(pipeline, made_sources("standard", MEASURED[:2]), folder, duration_s=CLIP_S)
    return Sounds(pipeline, "standard", PreparedClips(folder))


def test_a_mono_sound_comes_from_the_middle(sounds):
    for recipe in (Recipe("codec"), MODEL):
        for waveform in sounds.make(recipe, [0, 1]):
            assert waveform.shape == (2, round(CLIP_S * RATE))
            assert np.array_equal(waveform[0], waveform[1])
            assert waveform.any()


def test_conditions_that_are_absent_change_the_sound(sounds):
    usual = sounds.make(MODEL, [0])[0]
    for absent in (("video", "sync"), ("text",), ("sync",)):
        made = sounds.make(Recipe(guidance_scale=2.0, steps=1, absent=absent), [0])[0]
        assert not np.allclose(made, usual)


def test_a_contradicting_caption_takes_the_place_of_the_true_one(sounds, pipeline, monkeypatch):
    encode, read = pipeline.encode, []

    def note(frames, captions, cots):
        read.append((captions, cots))
        return encode(frames, captions, cots)

    monkeypatch.setattr(pipeline, "encode", note)
    claimed = sounds.make(CONTRADICTED, [0, 1])
    claims = [sounds.reference(CONTRADICTED, index) for index in (0, 1)]
    assert read == [([describe(each.scene, each.materials)[0] for each in claims], ["", ""])]
    index = next(
        index for index, claim in enumerate(claims) if claim.materials != sounds.references[index].materials
    )
    usual = sounds.make(MODEL, [0, 1])[index]
    # The rounding of stored features alone changes it by less than 1e-4.
    assert np.linalg.norm(claimed[index] - usual) > 0.01 * np.linalg.norm(usual)


def test_the_command_measures_a_preset_and_notices_another_vocoder(pipeline, tmp_path, capsys):
    rows = ["truth", "vae", "generated", "no-text", "random", "other-material"]
    command = ["evaluate", "made", "--preset", "mmaudio-tiny", "-o", str(tmp_path / "out"), "--count", "2"]
    command += ["--split", "standard", "--steps", "1", "--device", "cpu", "-q", "--rows", *rows]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "| truth through the VAE |" in table and "| texts say another material |" in table
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["guidance scale"] == 4.5

    weights = tmp_path / "weights" / "mmaudio-tiny"
    weights.mkdir(parents=True)
    state = pipeline.model.networks["vocoder"].state_dict()
    changed = {name: value + (name == "conv_pre.bias") for name, value in state.items()}
    save_file(changed, weights / "vocoder.safetensors", {"names": "network"})
    assert main([*command, "--weights", str(weights.parent)]) == 1
    assert "weights" in capsys.readouterr().err.partition("not")[0]
