"""`thinksound train` from the command line: runs that are killed, shared, exported, sampled and refused."""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors import safe_open
from support.networks import load
from support.paths import ROOT
from support.reference import four
from support.training_data import random_batch, write_clips
from torch import Tensor

import thinksound
from thinksound.checkpoints.load import load_file
from thinksound.cli import main
from thinksound.errors import WeightsError
from thinksound.families.find import family_of
from thinksound.families.thinksound import SIZES as PUBLISHED_SIZES
from thinksound.families.tiny import SIZES
from thinksound.models.mmdit import MMDiT
from thinksound.presets import LIGHT, TINY
from thinksound.training.flow import given_features
from thinksound.training.loop import CHECKPOINT, read_checkpoint
from thinksound.training.record import declare_run
from thinksound.training.tiny.untrained import make_tiny

pytestmark = pytest.mark.slow

STEPS = 5
RATE = 1e-3
SMALL = SIZES[TINY.size]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder / "clips", 5)
    write_clips(folder / "validation", 3, seed=1)
    return folder


def arguments(data: Path, run: Path, *more: object, steps: int = STEPS) -> list[str]:
    given = ["train", "dit", "--preset", "tiny", "--data", data / "clips", "-o", run, "--steps", steps]
    given += ["--batch", 2, "--learning-rate", RATE, "--warmup", 1, "--save-every", 2, "--log-every", 1]
    return [str(each) for each in (*given, "--device", "cpu", *more)]


def process(*command: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run that writes every kind of file."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    more = ("--validation", data / "validation", "--validate-every", 2, "--sample-every", 5, "--samples", 2)
    done = process("-m", "thinksound", *arguments(data, run, *more))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run}\n"
    return run


def values(run: Path, name: str, kind: str = "train") -> dict[int, float]:
    with (run / "log.csv").open(newline="") as file:
        return {
            int(row["step"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["kind"] == kind and row["name"] == name
        }


def trained(run: Path, which: str = "networks") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = read_checkpoint(run / CHECKPOINT)[which]["dit"]
    return tensors


def test_a_run_logs_measures_and_writes_sounds(whole, data):
    assert list(values(whole, "loss")) == [1, 2, 3, 4, 5]
    assert list(values(whole, "loss", "validation")) == [2, 4, 5]
    assert all(value > 0 for value in values(whole, "seconds_per_step").values())
    names = ["clip_1-0.wav", "clip_1-1.wav"]
    for folder in ("truth", "00000005"):
        assert sorted(path.name for path in (whole / "samples" / folder).iterdir()) == names
    for name in names:
        samples, rate = soundfile.read(whole / "samples" / "00000005" / name)
        assert rate == 16_000
        assert samples.shape == (31 * SMALL.vae.hop, 2)
        assert abs(samples).max() > 0.5
    first, last = trained(whole), trained(whole, "averages")
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_a_killed_run_goes_on_bit_for_bit(whole, data, tmp_path):
    """The process is killed in the middle of step 4, after the checkpoint of step 2."""
    killer = (
        "import os, signal, sys\n"
        "from thinksound.cli import main\n"
        "from thinksound.training import loop\n"
        "step = loop.Trainer._average\n"
        "def dies(trainer):\n"
        "    if trainer.step == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    step(trainer)\n"
        "loop.Trainer._average = dies\n"
        "main(sys.argv[1:])\n"
    )
    command = arguments(data, tmp_path / "run")
    done = process("-c", killer, *command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["step"] == 2
    done = process("-m", "thinksound", *command)
    assert done.returncode == 0, done.stderr
    for which in ("networks", "averages"):
        expected, found = trained(whole, which), trained(tmp_path / "run", which)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert values(tmp_path / "run", "loss") == values(whole, "loss")


SHARED = """
import sys
import torch
from thinksound.cli import main
from thinksound.training import loop, processes

resume = loop.Trainer.resume


def check(trainer):
    rank = processes.own_rank()
    size, processes.BUCKET = processes.BUCKET, 10  # so that there are several
    shapes = [(3, 2), (7,), (20,), (1,), (0,), (4, 4)]
    tensors = [torch.full(shape, float(rank + place)) for place, shape in enumerate(shapes)]
    tensors.insert(2, torch.full((5,), 10.0 * rank, dtype=torch.bfloat16))
    processes.average_over_processes(tensors)
    half = tensors.pop(2)
    assert (half == 5).all() and half.dtype == torch.bfloat16
    for place, tensor in enumerate(tensors):
        assert tensor.shape == shapes[place] and (tensor == place + 0.5).all(), tensor
    weights = torch.full((3,), float(rank))
    processes.copy_from_first([weights])
    assert (weights == 0).all()
    assert processes.same_everywhere(4) and not processes.same_everywhere(rank)
    assert processes.mean_over_processes({"a": rank, "b": 3.0}) == {"a": 0.5, "b": 3.0}
    processes.BUCKET = size
    print(f"checked {rank}", file=sys.stderr)
    resume(trainer)


loop.Trainer.resume = check
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_train_as_one(whole, data, tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    command = arguments(data, tmp_path / "run", "--validation", data / "validation", "--validate-every", 2)
    done = process(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, tmp_path / "shared.py", *command
    )
    assert done.returncode == 0, done.stderr
    for name, kind in (("loss", "train"), ("gradient", "train"), ("loss", "validation")):
        assert values(tmp_path / "run", name, kind) == pytest.approx(values(whole, name, kind), rel=2e-4)
    start = load(ROOT / "weights", "dit").state_dict()
    one, two = (
        torch.cat([(trained(run)[name] - value).flatten() for name, value in start.items()])
        for run in (whole, tmp_path / "run")
    )
    assert one.norm() > 0
    # AdamW's first steps follow the signs of gradients, and those of the smallest are due to rounding.
    assert torch.cosine_similarity(one, two, dim=0) > 0.999
    assert "checked 0" in done.stderr and "checked 1" in done.stderr
    assert done.stderr.count("step 5/5  loss") == 1  # one process speaks
    assert done.stdout == f"{tmp_path / 'run'}\n"


def test_an_exported_run_is_what_generates(whole, tmp_path, clips, capsys):
    weights = tmp_path / "weights"
    assert main(["train", "export", str(whole), "-o", str(weights)]) == 0
    path = weights / "tiny" / "mmdit.safetensors"
    assert capsys.readouterr().out == f"{path}\n"
    with safe_open(path, "pt") as file:
        assert file.metadata()["source"].startswith("thinksound train dit")
    loaded = load(weights, "dit").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trained(whole, "averages").items())

    before = thinksound.load("tiny", device="cpu")
    after = thinksound.load("tiny", weights, device="cpu")
    video = clips / "cfr25_1p0s.mp4"
    sounds = [
        pipeline(video, caption="rain", seed=1, num_inference_steps=2).latents for pipeline in (before, after)
    ]
    assert sounds[0].shape == sounds[1].shape
    assert not torch.allclose(sounds[0], sounds[1], atol=1e-3)
    command = ["generate", video, "--preset", "tiny", "--weights", weights, "--steps", 1, "--device", "cpu"]
    command += ["-q", "-o", tmp_path / "out.mp4"]
    assert main([str(each) for each in command]) == 0
    assert (tmp_path / "out.mp4").stat().st_size > 0

    # The last step instead, in another dtype, over the first export.
    assert main(["train", "export", str(whole), "-o", str(weights), "--last", "--dtype", "bfloat16"]) == 0
    loaded = load(weights, "dit").state_dict()
    for name, value in trained(whole).items():
        assert torch.equal(loaded[name], value.bfloat16().float())


def test_the_readme_trains_on_made_clips_as_printed(tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text().split("## Train")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.S)
    assert block is not None
    quick = block[1].replace("--count 300", "--count 2").replace("--steps 500", "--steps 1")
    assert quick.count("--count 2 ") == quick.count("--steps 1 ") == 1
    monkeypatch.chdir(tmp_path)
    for line in quick.splitlines():
        name, *words = shlex.split(line, comments=True)
        assert name == "thinksound"
        assert main(words) == 0, f"{line}: {capsys.readouterr().err}"
    assert (tmp_path / "standard-1000000_sound.mp4").is_file()


def test_an_export_stands_beside_the_networks_that_it_was_trained_with(whole, tmp_path):
    mine, output = tmp_path / "mine", tmp_path / "output"
    make_tiny(mine / "tiny")
    assert main(["train", "export", str(whole), "-o", str(output), "--weights", str(mine)]) == 0
    for file in (
        "vae.safetensors",
        "synchformer.safetensors",
        "metaclip/model.safetensors",
        "t5/config.json",
    ):
        assert (output / "tiny" / file).resolve() == mine / "tiny" / file
    thinksound.load("tiny", output, device="cpu")  # verifies checksums
    # Networks that are not in the weights folder are linked from the bundled ones, so the folder is complete.
    assert main(["train", "export", str(whole), "-o", str(tmp_path / "alone")]) == 0
    for file in ("vae.safetensors", "t5/config.json"):
        assert (tmp_path / "alone" / "tiny" / file).resolve() == ROOT / "weights" / "tiny" / file
    thinksound.load("tiny", tmp_path / "alone", device="cpu")


def test_a_stage_of_the_recipe_is_not_exported(tmp_path, capsys):
    declare_run(tmp_path, {"steps": 2}, {})
    assert main(["train", "export", str(tmp_path), "-o", str(tmp_path / "weights")]) == 1
    assert "a stage of scripts/train-tiny" in capsys.readouterr().err


def test_what_was_not_trained_here_is_not_replaced(whole, tmp_path, capsys):
    (tmp_path / "tiny").mkdir()
    bundled = (ROOT / "weights" / "tiny" / "mmdit.safetensors").read_bytes()
    (tmp_path / "tiny" / "mmdit.safetensors").write_bytes(bundled)
    assert main(["train", "export", str(whole), "-o", str(tmp_path)]) == 1
    assert "holds other weights of this network (tiny/mmdit.safetensors)" in capsys.readouterr().err
    assert (tmp_path / "tiny" / "mmdit.safetensors").read_bytes() == bundled


def test_an_export_can_be_trained_further(whole, data, tmp_path):
    assert main(["train", "export", str(whole), "-o", str(tmp_path)]) == 0
    exported = tmp_path / "tiny" / "mmdit.safetensors"
    assert main(arguments(data, tmp_path / "run", "--from", exported, "-q", steps=1)) == 0
    start = load_file(_on_meta(), exported, "thinksound", torch.float32).state_dict()
    found = trained(tmp_path / "run")
    assert all((found[name] - value).abs().max() <= 1.1 * RATE for name, value in start.items())
    assert any(not torch.equal(found[name], value) for name, value in start.items())


def _on_meta() -> MMDiT:
    with torch.device("meta"):
        return MMDiT(SMALL.mmdit)


def test_a_checkpoint_under_its_published_names_is_a_start(tmp_path):
    network = MMDiT(SMALL.mmdit)
    state = {f"diffusion.model.model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "trainer.ckpt")
    loaded = load_file(_on_meta(), tmp_path / "trainer.ckpt", "thinksound", torch.float32)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with torch.device("meta"):
        other = MMDiT(PUBLISHED_SIZES[LIGHT.size].mmdit)
    with pytest.raises(WeightsError, match="choose the preset that these weights belong to"):
        load_file(other, tmp_path / "trainer.ckpt", "thinksound", torch.float32)


def test_scratch_starts_from_the_seed(data, tmp_path):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        more = ("--from", "scratch", "--seed", seed, "-q")
        assert main(arguments(data, tmp_path / name, *more, steps=1)) == 0
        runs.append(trained(tmp_path / name))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["t_embed.mlp.0.weight"], runs[2]["t_embed.mlp.0.weight"])


@pytest.fixture
def refused(data, tmp_path, capsys):
    """The error message of the command for arguments that it refuses."""

    def message(*more: object, run: Path = tmp_path / "run", steps: int = STEPS) -> str:
        assert main(arguments(data, run, *more, steps=steps)) == 1
        error = capsys.readouterr().err
        assert error.startswith("thinksound: error: ") and error.count("\n") <= 3
        assert not (run / CHECKPOINT).exists() or run != tmp_path / "run"
        return error.removeprefix("thinksound: error: ")

    return message


def test_what_cannot_be_trained_is_refused_before_training(refused, data, tmp_path):
    assert "no such folder; make it with `thinksound prepare`" in refused("--data", tmp_path / "none")
    assert "prepare the files again with --preset thinksound" in refused("--preset", "thinksound")
    assert "--parts 3: give 1 to 2, the clips of a process's step" in refused("--parts", 3)
    assert "--ema 1.0: give 0 to less than 1" in refused("--ema", 1)
    assert "--steps 0: give 1 or more" in refused(steps=0)
    assert "several need torchrun" in refused("--device", "cuda:0,cuda:1")
    (tmp_path / "text.ckpt").write_text("no weights")
    assert "text.ckpt: a text file, not a weight file" in refused("--from", tmp_path / "text.ckpt")
    assert "none.ckpt: cannot be read" in refused("--from", tmp_path / "none.ckpt")
    t5 = ROOT / "weights" / "tiny" / "t5" / "model.safetensors"
    assert "holds nothing of MMDiT, it looks like T5 weights" in refused("--from", t5)


def test_a_checkpoint_of_another_size_is_refused(refused, tmp_path):
    with torch.device("meta"):
        shapes = MMDiT(SMALL.mmdit).state_dict()
    other = {name: torch.zeros([size + 1 for size in value.shape]) for name, value in shapes.items()}
    torch.save({f"model.model.{name}": value for name, value in other.items()}, tmp_path / "other.ckpt")
    assert "choose the preset that these weights belong to" in refused("--from", tmp_path / "other.ckpt")


def test_a_run_is_not_taken_up_with_other_options(whole, refused, data, tmp_path):
    assert "its run was started with batch 2, not 4; give the same" in refused("--batch", 4, run=whole)
    assert "from preset, not scratch" in refused("--from", "scratch", run=whole)
    write_clips(tmp_path / "clips", 4, seed=9)
    error = refused("--data", tmp_path / "clips", run=whole)
    assert "started with data 5 clips" in error and "not 4 clips" in error


def test_missing_weights_say_how_to_get_them(data, tmp_path, capsys):
    write_clips(tmp_path / "clips", 2, duration_s=1.0, family=family_of(LIGHT))
    command = ["train", "dit", "--data", str(tmp_path / "clips"), "-o", str(tmp_path / "run"), "--steps", "1"]
    assert main([*command, "--weights", str(tmp_path), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "thinksound_light.ckpt, from FunAudioLLM/ThinkSound" in error
    assert "--from FILE" in error


def test_folders_without_a_run_are_named(tmp_path, capsys):
    assert main(["train", "export", str(tmp_path), "-o", str(tmp_path / "weights")]) == 1
    assert "no training run (there is no run.json)" in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()


def test_the_vae_is_trained_on_a_folder_and_exported(tmp_path, capsys):
    (tmp_path / "sounds").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        noise = 0.1 * torch.randn(40_000, 2, generator=generator)
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", noise.numpy(), 16_000)
    command = ["train", "vae", "--preset", "tiny", "--data", str(tmp_path / "sounds")]
    command += ["-o", str(tmp_path / "run"), "--steps", "2", "--batch", "2", "--excerpt", "32"]
    command += ["--device", "cpu", "-q"]
    assert main(command) == 0
    assert main([*command, "--batch", "4"]) == 1
    assert "started with batch 2, not 4" in capsys.readouterr().err
    weights = tmp_path / "weights"
    assert main(["train", "export", str(tmp_path / "run"), "-o", str(weights), "--standardise"]) == 0
    here, there = (load(folder, "vae").state_dict() for folder in (weights, ROOT / "weights"))
    assert not any(torch.equal(here[name], there[name]) for name in here if name.endswith("weight"))


def test_an_adapter_is_trained_kept_in_pefts_format_and_merged(data, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    run, lora = tmp_path / "run", ("--lora", "--rank", 4, "--alpha", 8, "-q")
    assert main(arguments(data, run, *lora, steps=2)) == 0
    assert main(arguments(data, run, *lora, steps=4)) == 0
    state = trained(run)
    assert state and all("lora_" in name for name in state)
    convolutions = [value for name, value in state.items() if "lora_A" in name and value.dim() == 3]
    assert convolutions and all(value.shape[0] == 4 for value in convolutions)

    base = load(ROOT / "weights", "dit")
    batch = random_batch(2)
    length = batch.latent_mean.shape[-1]

    def velocity(network: MMDiT) -> Tensor:
        with torch.no_grad():
            given = given_features(network, family_of(TINY).conditions, batch)
            conditions = network.project(*four(given), length)
            return network(batch.latent_mean, torch.full((2,), 0.5), conditions)

    before = velocity(base)
    model = peft.PeftModel.from_pretrained(base, str(run / "adapter"), torch_device="cpu")
    adapted = velocity(model.base_model.model)
    assert not torch.allclose(adapted, before, atol=1e-4)

    assert main(["train", "export", str(run), "-o", str(tmp_path / "exported")]) == 0
    merged = load(tmp_path / "exported", "dit")
    torch.testing.assert_close(velocity(merged), adapted, atol=1e-4, rtol=1e-3)
    command = ["train", "merge", str(run / "adapter"), "--preset", "tiny", "-o", str(tmp_path / "merged")]
    assert main(command) == 0
    one, other = (tmp_path / name / "tiny" / "mmdit.safetensors" for name in ("exported", "merged"))
    assert one.read_bytes() == other.read_bytes()

    capsys.readouterr()
    assert main(["train", "export", str(run), "-o", str(tmp_path / "last"), "--last"]) == 1
    assert "only the averaged weights are kept" in capsys.readouterr().err
    assert main(["train", "merge", str(run), "--preset", "tiny", "-o", str(tmp_path / "none")]) == 1
    assert "no adapter (there is no adapter_config.json)" in capsys.readouterr().err
    assert main(arguments(data, run, "--lora", "--rank", 8, steps=4)) == 1
    assert "rank 4, not 8" in capsys.readouterr().err
    assert main(arguments(data, run, steps=4)) == 1
    assert "rank 4, not nothing" in capsys.readouterr().err


def test_without_peft_the_message_says_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install peft" in refused("--lora")


def test_an_adapter_of_nothing_is_refused(refused):
    assert "an adapter needs weights that it adapts" in refused("--lora", "--from", "scratch")


def test_help_names_every_group(capsys):
    for action, groups in (
        ("dit", ("data", "start", "recipe", "LoRA", "run", "samples", "machine")),
        ("vae", ("data", "start", "recipe", "run", "machine")),
    ):
        with pytest.raises(SystemExit):
            main(["train", action, "--help"])
        shown = capsys.readouterr().out
        assert all(f"\n{group}:\n" in shown for group in groups), shown
