"""MMAudio's transformer in training: which way time runs, normalised latents, null features, runs of it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F
from support.networks import load
from support.training_data import random_batch, write_clips
from torch import Tensor

import thinksound
from thinksound.cli import main
from thinksound.data.shards import PreparedClips
from thinksound.families.find import family_of
from thinksound.families.mmaudio import SIZES, MMAudioFamily
from thinksound.models.mmaudio import MMAudioFlow
from thinksound.presets import MMAUDIO_TINY, TINY, get_preset
from thinksound.training.dropping import dropping, settled
from thinksound.training.flow import (
    VALIDATION_TIMES,
    FlowLearner,
    draw_dropped,
    given_features,
    initialise_flow,
    latent_statistics,
)
from thinksound.training.loop import CHECKPOINT, Update, read_checkpoint, step_generator
from thinksound.training.options import FlowOptions

pytestmark = pytest.mark.slow

SMALL = replace(
    SIZES["tiny"],
    flow=replace(
        SIZES["tiny"].flow, clip_dim=16, sync_dim=24, hidden_dim=32, depth=3, fused_depth=1, num_heads=2
    ),
)
FAMILY = MMAudioFamily(MMAUDIO_TINY, SMALL)
COMMAND = ("--preset", "mmaudio-tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> PreparedClips:
    return PreparedClips(write_clips(tmp_path_factory.mktemp("clips") / "prepared", 6, family=FAMILY))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of the preset's own sizes."""
    return write_clips(tmp_path_factory.mktemp("clips") / "prepared", 4, family=family_of(MMAUDIO_TINY))


def small_network() -> MMAudioFlow:
    """Values that are not at a start, so that every weight matters."""
    network = MMAudioFlow(SMALL.flow)
    initialise_flow(network, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        network.empty_string_feat.normal_(generator=generator)
    network.normalise_by(torch.linspace(-2, 2, 8), torch.linspace(0.5, 3, 8))
    return network


def test_the_loss_is_the_published_one(clips):
    """Written out as in the paper: x0 is noise at time 0, x1 sound at time 1, the velocity x1 - x0."""
    network = small_network()
    learner = FlowLearner(network, FAMILY, FlowOptions(batch=6), clips, clips)
    batch = clips.batch(range(6))
    generator = torch.Generator().manual_seed(0)
    posterior, x0 = (torch.randn(batch.latent_mean.shape, generator=generator) for _ in range(2))
    x1 = batch.latent_mean + (0.5 * batch.latent_scale).exp() * posterior
    x1 = (x1 - torch.linspace(-2, 2, 8)[:, None]) / torch.linspace(0.5, 3, 8)[:, None]
    losses = []
    with torch.no_grad():
        frames, sync, text = given_features(network, FAMILY.conditions, batch)
        conditions = network.project(frames, sync, text, x1.shape[-1])
        for house_time in VALIDATION_TIMES:
            t = 1 - house_time
            found = network((1 - t) * x0 + t * x1, torch.full((6,), t), conditions)
            losses.append(F.mse_loss(found, x1 - x0))
    expected = torch.stack(losses).mean().item()
    assert learner.validate(learner.networks)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("preset", "given", "chances"),
    [
        (MMAUDIO_TINY, FlowOptions(), (0.1, 0.0)),
        (TINY, FlowOptions(), (0.2, 0.1)),
        (TINY, FlowOptions(drop_one=0.0), (0.0, 0.1)),
        (TINY, FlowOptions(drop_all=0.0), (0.2, 0.0)),
        (MMAUDIO_TINY, FlowOptions(drop_one=0.3, drop_all=0.4), (0.3, 0.4)),
    ],
)
def test_chances_of_dropping_that_are_left_open_are_the_familys(preset, given, chances):
    options = settled(given, family_of(preset))
    assert (options.drop_one, options.drop_all) == chances


def test_frames_and_synchronisation_are_dropped_together(clips):
    assert dropping(FAMILY).groups(FAMILY) == [0, 0, 1]
    assert dropping(family_of(TINY)).groups(family_of(TINY)) == [0, 1, 2, 3]
    options = FlowOptions(drop_one=0.1, drop_all=0.0)
    drawn = draw_dropped(100_000, 2, options, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.float().mean(0), torch.tensor([0.1, 0.1]), atol=0.005, rtol=0)
    assert drawn.all(1).float().mean().item() == pytest.approx(0.01, abs=0.002)

    # In a step, either both null features are used or neither is.
    network = small_network()
    learner = FlowLearner(network, FAMILY, FlowOptions(batch=1, drop_one=0.5, drop_all=0.0), clips)
    used = []
    for step in range(12):
        learner.train_step(step, step_generator(0, step), Update(1.0))
        grads = [network.empty_clip_feat.grad, network.empty_sync_feat.grad]
        used.append([grad is not None and bool(grad.any()) for grad in grads])
    assert all(frames == sync for frames, sync in used)
    assert {frames for frames, _ in used} == {True, False}


def test_an_absent_text_is_the_encoded_empty_one_which_no_step_moves(clips):
    network = small_network()
    batch = random_batch(2, family=FAMILY)
    dropped = torch.tensor([[False, False, True], [False, False, False]])
    given = given_features(network, FAMILY.conditions, batch, dropped)
    assert torch.equal(given[2][0], network.empty_string_feat)
    assert torch.equal(given[2][1], batch.features["text_features"][1])
    before = network.empty_string_feat.clone()
    options = FlowOptions(batch=2, drop_one=0.9, learning_rate=0.1)
    FlowLearner(network, FAMILY, options, clips).train_step(0, step_generator(0, 0), Update(1.0))
    assert torch.equal(network.empty_string_feat, before)


def test_latents_have_mean_zero_and_deviation_one_for_a_new_transformer(clips):
    network = MMAudioFlow(SMALL.flow)
    network.normalise_by(*latent_statistics(clips))
    latents = clips.batch(range(6)).latent_mean
    torch.testing.assert_close(network.latent_mean.flatten(), latents.mean(dim=(0, 2)))
    normal = network.normalised(latents)
    torch.testing.assert_close(normal.mean(dim=(0, 2)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.square().mean(dim=(0, 2)), torch.ones(8))
    torch.testing.assert_close(network.unnormalised(normal), latents)


def test_the_loss_falls(clips):
    network = MMAudioFlow(SMALL.flow)
    initialise_flow(network, 0)
    network.normalise_by(*latent_statistics(clips))
    options = FlowOptions(batch=6, learning_rate=3e-3, drop_one=0.1, drop_all=0.0)
    learner = FlowLearner(network, FAMILY, options, clips, clips)
    before = learner.validate(learner.networks)["loss"]
    for step in range(40):
        learner.train_step(step, step_generator(0, step), Update(1.0))
    assert learner.validate(learner.networks)["loss"] < 0.8 * before


# --- through the command line ---------------------------------------------------------------------


def train(prepared: Path, run: Path, *more: object, steps: int = 2) -> int:
    command = ["train", "dit", *COMMAND, "--data", prepared, "-o", run, "--steps", steps, "--batch", 2]
    command += ["--warmup", 1, "--log-every", 1, "-q", *more]
    return main([str(each) for each in command])


def trained(run: Path, which: str = "averages") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = read_checkpoint(run / CHECKPOINT)[which]["dit"]
    return tensors


def test_a_run_is_measured_heard_and_exported(prepared, tmp_path, capsys):
    run, weights = tmp_path / "run", tmp_path / "weights"
    more = ("--validation", prepared, "--validate-every", 1, "--sample-every", 2, "--samples", 1)
    assert train(prepared, run, *more) == 0
    options = json.loads((run / "run.json").read_text())["options"]
    assert (options["drop_one"], options["drop_all"]) == (0.1, 0.0)
    with (run / "log.csv").open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file) if row["name"] == "loss"]
    assert kinds == ["train", "validation", "train", "validation"]
    sound = family_of(MMAUDIO_TINY).sound
    for folder in ("truth", "00000002"):
        samples, rate = soundfile.read(run / "samples" / folder / "clip_0-0.wav")
        assert (rate, samples.shape) == (16_000, (sound.latent_length(1.0) * sound.hop,))
        assert abs(samples).max() > 0.5

    assert main(["train", "export", str(run), "-o", str(weights)]) == 0
    capsys.readouterr()
    loaded = load(weights, "dit", preset=MMAUDIO_TINY).state_dict()
    assert loaded.keys() == trained(run).keys()
    assert all(torch.equal(loaded[name], value) for name, value in trained(run).items())
    # What is not trained is that of the start.
    start = load(tmp_path, "dit", preset=MMAUDIO_TINY).state_dict()
    for name in ("latent_mean", "latent_std", "empty_string_feat"):
        assert torch.equal(loaded[name], start[name])
    assert not torch.equal(loaded["empty_clip_feat"], start["empty_clip_feat"])
    before, after = (
        thinksound.load("mmaudio-tiny", folder, device="cpu")(
            caption="rain", seed=1, duration=1.0, num_inference_steps=1
        )
        for folder in (tmp_path, weights)
    )
    assert not torch.equal(before.latents, after.latents)


def test_scratch_takes_statistics_from_the_clips_and_the_empty_text_from_clip(prepared, tmp_path):
    assert train(prepared, tmp_path / "run", "--from", "scratch") == 0
    found = trained(tmp_path / "run")
    mean, deviation = latent_statistics(PreparedClips(prepared))
    assert torch.equal(found["latent_mean"].flatten(), mean)
    assert torch.equal(found["latent_std"].flatten(), deviation)
    encoded = load(tmp_path, "clip", preset=MMAUDIO_TINY).encode_text("")
    torch.testing.assert_close(found["empty_string_feat"], encoded.clone())


def test_an_adapter_is_trained_and_merged(prepared, tmp_path):
    pytest.importorskip("peft")
    run = tmp_path / "run"
    assert train(prepared, run, "--lora", "--rank", 2, "--learning-rate", 1e-2) == 0
    assert trained(run)
    assert main(["train", "export", str(run), "-o", str(tmp_path / "exported")]) == 0
    command = ["train", "merge", str(run / "adapter"), "--preset", "mmaudio-tiny"]
    assert main([*command, "-o", str(tmp_path / "merged")]) == 0
    one, other = (tmp_path / name / "mmaudio-tiny" / "dit.safetensors" for name in ("exported", "merged"))
    assert one.read_bytes() == other.read_bytes()
    start, merged = (
        load(each, "dit", preset=MMAUDIO_TINY).state_dict() for each in (tmp_path, one.parents[1])
    )
    changed = {name for name, value in merged.items() if not torch.equal(value, start[name])}
    assert changed
    assert all(
        name.endswith(("qkv.weight", "linear1.weight", "w1.weight", "w2.weight", "w3.weight"))
        for name in changed
    )


def test_clips_of_another_family_are_refused(prepared, tmp_path, capsys):
    other = write_clips(tmp_path / "tiny", 2)
    assert train(other, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "prepared for tiny, whose encoders are not those of mmaudio-tiny" in error
    assert "prepare the files again with --preset mmaudio-tiny" in error
    command = ["train", "dit", "--preset", "tiny", "--data", str(prepared), "-o", str(tmp_path / "run")]
    assert main([*command, "--steps", "1"]) == 1
    assert "prepared for mmaudio-tiny" in capsys.readouterr().err


def test_clips_serve_every_preset_with_the_same_encoders(tmp_path):
    folder = write_clips(tmp_path / "clips", 1, family=family_of(get_preset("mmaudio-small-44k")))
    PreparedClips(folder).check(get_preset("mmaudio-large-44k-v2"))


def test_help_knows_the_presets_and_their_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "dit", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "mmaudio-large-44k-v2" in shown
    assert "whose frames and synchronisation go together, 0.1" in shown
