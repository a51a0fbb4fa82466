"""Preparing clips for MMAudio: mono sound at one level, its own frames and text, its own lengths."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support import clips as make
from torch import Tensor

import thinksound
from thinksound.cli import main
from thinksound.data.clips import Clip
from thinksound.data.shards import Layout, PreparedClips
from thinksound.data.sources import FileSource, MadeSource
from thinksound.families.find import family_of
from thinksound.pipeline import Pipeline
from thinksound.presets import MMAUDIO_TINY, TINY, get_preset

pytestmark = pytest.mark.slow

RATE = 16_000
LAYOUT = Layout.of(family_of(MMAUDIO_TINY), 1.0)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return thinksound.load("mmaudio-tiny", device="cpu")


def prepare(*command: object) -> int:
    return main(["prepare", *map(str, command), "--preset", "mmaudio-tiny", "--device", "cpu"])


def near(stored: Tensor, exact: Tensor) -> bool:
    """Equal but for float16 and for the size of the batch in which it was computed."""
    return bool(torch.linalg.norm(stored - exact) <= 1e-3 * torch.linalg.norm(exact))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.uniform(-0.2, 0.2, (round(seconds * RATE), 2)).astype(np.float32)


def test_files_become_the_features_that_generation_sees(pipeline, tmp_path, capsys):
    files = tmp_path / "files"
    files.mkdir()
    make.render(files / "v.mp4", frames=30, sound_s=1.2)
    soundfile.write(files / "n.wav", noise(1.0), RATE, subtype="FLOAT")
    side = noise(1.0)[:, :1]
    soundfile.write(files / "opposite.wav", np.concatenate([side, -side], axis=1), RATE, subtype="FLOAT")
    table = tmp_path / "t.csv"
    table.write_text("file,caption,cot\nv.mp4,rain,rain falls on a roof\nn.wav,wind,\nopposite.wav,wind,\n")
    folder = tmp_path / "p"
    assert prepare(files, "--captions", table, "-o", folder, "--duration", 1) == 0
    shown = capsys.readouterr().err
    assert "Note: cot is not read by mmaudio-tiny; the captions alone were encoded" in shown
    with (folder / "skipped.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["opposite.wav", "silent"]]  # in mono

    clips = PreparedClips(folder)
    assert clips.names == ["v.mp4", "n.wav"]
    batch = clips.batch([0, 1])
    assert batch.has_video.tolist() == [True, False]
    wanted = pipeline.encode(pipeline.decode(files / "v.mp4", 1.0), "rain")
    assert set(batch.features) == {"clip_features", "sync_features", "text_features"}
    for name, stored in batch.features.items():
        assert near(stored[0], wanted[name]), name
    assert not batch.features["sync_features"][1].any()

    # Latents are those of the mean of both channels, at the level of the published training.
    mono = torch.from_numpy(noise(1.0).T.copy()).mean(dim=0)
    wave = torch.zeros(1, 1, LAYOUT.audio_samples)
    wave[0, 0, :RATE] = 0.95 * mono / mono.abs().max()
    with torch.inference_mode():
        mean, log_variance = pipeline.model.encode_sound(wave)
    assert near(batch.latent_mean[1], mean[0])
    assert near(batch.latent_scale[1], log_variance[0])


def test_without_a_chain_of_thought_there_is_no_note(tmp_path, capsys):
    soundfile.write(tmp_path / "n.wav", noise(1.0), RATE)
    (tmp_path / "t.csv").write_text("file,caption\nn.wav,wind\n")
    command = (tmp_path, "--captions", tmp_path / "t.csv", "-o", tmp_path / "p", "--duration", 1)
    assert prepare(*command) == 0
    assert "cot" not in capsys.readouterr().err


def test_every_clip_of_a_file_has_the_files_level(tmp_path):
    """The loudest moment of a file decides, not that of each clip."""
    sound = noise(2.0)
    sound[RATE:] *= 0.1
    soundfile.write(tmp_path / "n.wav", sound, RATE, subtype="FLOAT")
    first, second = FileSource("n.wav", tmp_path / "n.wav", "wind", "").read(LAYOUT)
    assert isinstance(first, Clip) and isinstance(second, Clip)
    assert first.waveform.abs().max().item() == pytest.approx(0.95)
    assert second.waveform.abs().max().item() == pytest.approx(0.095, rel=0.1)
    # Other families take sounds as they are.
    (other, _) = FileSource("n.wav", tmp_path / "n.wav", "wind", "").read(Layout.of(family_of(TINY), 1.0))
    assert isinstance(other, Clip)
    assert np.array_equal(other.waveform.numpy(), sound.T[:, : other.waveform.shape[1]])


def test_a_synthetic_clip_is_its_scene(pipeline, tmp_path):
    folder = tmp_path / "p"
    assert prepare("--made", "standard:1000003:1", "-o", folder, "--duration", 2, "-q") == 0
    clips = PreparedClips(folder)
    (clip,) = MadeSource("standard", 1_000_003).read(clips.layout)
    assert isinstance(clip, Clip)
    assert clip.frames["clip"].shape == (16, 384, 384, 3)
    assert clip.frames["sync"].shape == (50, 224, 224, 3)
    assert torch.equal(clip.waveform[0], clip.waveform[1])
    batch, wanted = clips.batch([0]), pipeline.encode(clip.frames, clip.texts.caption)
    for name, stored in batch.features.items():
        assert near(stored[0], wanted[name]), name


def test_lengths_are_those_of_the_published_training():
    for size, latents, samples in (("small-16k", [20, 250], 128_000), ("large-44k-v2", [40, 345], 353_280)):
        layout = Layout.of(family_of(get_preset(f"mmaudio-{size}")), 8.0)
        assert layout.audio_samples == samples
        assert layout.shapes == {
            "clip_features": [64, 1024],
            "sync_features": [192, 768],
            "text_features": [77, 1024],
            "latent_mean": latents,
            "latent_scale": latents,
        }
        assert "vocoder" not in layout.encoders
        assert set(layout.encoders) == {"clip", "synchformer", "vae"}


def test_a_folder_of_another_family_is_not_filled_further(tmp_path: Path, capsys):
    folder = tmp_path / "p"
    made = ["--made", "standard:1000000:1", "-o", str(folder), "--duration", "2", "-q"]
    assert main(["prepare", "--preset", "tiny", "--device", "cpu", *made]) == 0
    assert prepare(*made) == 1
    error = capsys.readouterr().err
    assert "holds clips of 2 s for tiny, wanted are 2 s for mmaudio-tiny; choose another folder" in error
