"""Preparing clips for training: what is stored, what is skipped, and resuming after an interruption."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support import clips as make
from support.paths import ROOT
from torch import Tensor

import thinksound
from thinksound.cli import main
from thinksound.data.clips import Clip
from thinksound.data.prepare import prepare_clips
from thinksound.data.shards import PreparedClips
from thinksound.data.sources import FileSource, MadeSource, made_sources
from thinksound.data.tables import read_table
from thinksound.errors import InputError
from thinksound.families.find import family_of
from thinksound.presets import LIGHT, TINY

pytestmark = pytest.mark.slow

SOUND = family_of(TINY).sound
RATE, HOP = SOUND.sample_rate, SOUND.hop
CONDITIONS = ("clip_features", "sync_features", "text_features", "t5_features")
MADE = made_sources("standard", range(1_000_000, 1_000_005))


@pytest.fixture(scope="module")
def pipeline():
    return thinksound.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def made(pipeline, tmp_path_factory):
    """Five synthetic clips of two seconds in shards of two, prepared without interruption."""
    folder = tmp_path_factory.mktemp("made")
    prepare_clips(pipeline, MADE, folder, duration_s=2, shard_size=2)
    return folder


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate), 2)).astype(np.float32)


def write_noise(path: Path, seconds: float, seed: int = 0) -> Path:
    soundfile.write(path, noise(seconds, seed), RATE, subtype="FLOAT")
    return path


def source(path: Path, caption: str = "a sound", cot: str = "") -> FileSource:
    return FileSource(path.name, path, caption, cot)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def near(stored: torch.Tensor, exact: torch.Tensor) -> bool:
    """Equal up to float16 and the effect of the batch size on rounding."""
    return torch.linalg.norm(stored - exact) <= 1e-3 * torch.linalg.norm(exact)


def test_a_video_becomes_the_features_that_generation_sees(pipeline, tmp_path):
    video = make.render(tmp_path / "v.mp4", frames=55, sound_s=2.2)
    prepared = prepare_clips(
        pipeline, [source(video, "rain", "rain on a roof")], tmp_path / "p", duration_s=1
    )
    assert (prepared.clips, prepared.complete, prepared.skipped) == (2, True, ())
    clips = PreparedClips(tmp_path / "p")
    assert clips.names == ["v.mp4", "v.mp4@1"]
    batch = clips.batch([0, 1])
    wanted = pipeline.encode(pipeline.decode(video, 1.0), "rain", "rain on a roof")
    assert set(batch.features) == set(wanted) == set(CONDITIONS)
    for name, stored in batch.features.items():
        assert stored.dtype == torch.float32
        assert near(stored[0], wanted[name]), name
    assert batch.has_video.tolist() == [True, True]

    # The second clip is the second second.
    decoded = pipeline.decode(video)
    second = pipeline.model.metaclip.encode_frames(decoded.frames["clip"][8:16])
    assert near(batch.features["clip_features"][1], second)
    assert not near(batch.features["clip_features"][0], second)


def test_latents_are_those_of_the_sound_from_each_clips_beginning(pipeline, tmp_path):
    path = write_noise(tmp_path / "n.wav", 3.3)
    prepare_clips(pipeline, [source(path)], tmp_path / "p", duration_s=1)
    clips = PreparedClips(tmp_path / "p")
    assert clips.names == ["n.wav", "n.wav@1", "n.wav@2"]
    batch = clips.batch([2, 0])  # in the requested order
    length = batch.latent_mean.shape[2]
    wave = torch.from_numpy(noise(3.3).T)
    for row, start in ((0, 2 * RATE), (1, 0)):
        with torch.inference_mode():
            mean, scale = pipeline.model.encode_sound(wave[None, :, start : start + length * HOP])
        assert near(batch.latent_mean[row], mean[0])
        assert near(batch.latent_scale[row], scale[0])


def test_sound_alone_has_no_video_and_stands_beside_clips_that_have(pipeline, tmp_path):
    files = [make.render(tmp_path / "v.mp4", frames=25, sound_s=1), write_noise(tmp_path / "n.wav", 1)]
    make.render_sound(tmp_path / "m.mp3", 1.1, codec="mp3")
    prepare_clips(pipeline, [source(p) for p in (*files, tmp_path / "m.mp3")], tmp_path / "p", duration_s=1)
    batch = PreparedClips(tmp_path / "p").batch([0, 1, 2])
    assert batch.has_video.tolist() == [True, False, False]
    for features in (batch.features["clip_features"], batch.features["sync_features"]):
        assert features[0].any()
        assert not features[1:].any()


def test_a_made_clip_is_its_scene(pipeline, made):
    clips = PreparedClips(made)
    assert clips.names == [each.name for each in MADE]
    (clip,) = MadeSource("standard", 1_000_003).read(clips.layout)
    assert isinstance(clip, Clip)
    features = pipeline.encode(clip.frames, clip.texts.caption, clip.texts.cot)
    batch = clips.batch([3])
    assert set(batch.features) == set(features) == set(CONDITIONS)
    for name, stored in batch.features.items():
        assert near(stored[0], features[name]), name


@pytest.fixture
def change_t5(pipeline, monkeypatch):
    """Replaces T5 by a function of a text and its T5 features."""
    encode = pipeline.model.t5.encode

    def change(function: Callable[[str, Tensor], Tensor]) -> None:
        steps = tuple(
            replace(step, encode=lambda text: function(text, encode(text))) if step.network == "t5" else step
            for step in pipeline.model.text_steps
        )
        assert steps != pipeline.model.text_steps
        monkeypatch.setattr(pipeline.model, "text_steps", steps)

    return change


def test_each_text_is_encoded_once(pipeline, tmp_path, change_t5):
    texts: list[str] = []

    def counted(text: str, features: Tensor) -> Tensor:
        texts.append(text)
        return features

    change_t5(counted)
    path = write_noise(tmp_path / "n.wav", 3)
    prepare_clips(pipeline, [source(path, cot="one"), source(path, cot="two")], tmp_path / "p", duration_s=1)
    assert texts == ["one", "two"]


def test_values_too_large_for_float16_are_kept(pipeline, tmp_path, change_t5):
    change_t5(lambda text, features: features * 1e6)
    prepare_clips(pipeline, [source(write_noise(tmp_path / "n.wav", 1))], tmp_path / "p", duration_s=1)
    stored = PreparedClips(tmp_path / "p").batch([0]).features["t5_features"][0]
    assert torch.allclose(stored, pipeline.model.t5.encode("a sound") * 1e6, rtol=0.01)


def test_features_that_are_no_numbers_never_reach_training(pipeline, tmp_path, change_t5):
    factor = {"bad": float("nan"), "good": 1.0}
    change_t5(lambda text, features: features * factor[text])
    files = [write_noise(tmp_path / f"{index}.wav", 1) for index in range(3)]
    sources = [source(path, text) for path, text in zip(files, ("good", "bad", "good"), strict=True)]
    prepared = prepare_clips(pipeline, sources, tmp_path / "p", duration_s=1)
    clips = PreparedClips(tmp_path / "p")
    assert clips.names == ["0.wav", "2.wav"]
    assert clips.batch([0, 1]).features["t5_features"].isfinite().all()
    assert [(each.name, "not numbers" in each.reason) for each in prepared.skipped] == [("1.wav", True)]


def test_one_part_that_is_no_number_is_enough_to_leave_a_clip_out(pipeline, tmp_path, monkeypatch):
    spoiled = (*CONDITIONS, "latent_mean", "latent_scale")  # each in its own clip, all but the last
    encode, encode_sound = pipeline.encode, pipeline.model.encode_sound

    def encode_badly(*given: object) -> list[dict[str, Tensor]]:
        features = [dict(each) for each in encode(*given)]
        for each, name in zip(features, CONDITIONS, strict=False):
            shape = {c.name: c.shape(1.0) for c in pipeline.family.conditions}[name]
            each[name] = torch.zeros(shape).index_fill_(0, torch.tensor([shape[0] - 1]), float("inf"))
        return features

    def encode_sound_badly(waveforms: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = (part.clone() for part in encode_sound(waveforms))
        mean[4, -1, -1] = scale[5, 0, 0] = float("nan")
        return mean, scale

    monkeypatch.setattr(pipeline, "encode", encode_badly)
    monkeypatch.setattr(pipeline.model, "encode_sound", encode_sound_badly)
    files = [write_noise(tmp_path / f"{index}.wav", 1) for index in range(len(spoiled) + 1)]
    prepare_clips(pipeline, [source(path) for path in files], tmp_path / "p", duration_s=1)
    assert PreparedClips(tmp_path / "p").names == ["6.wav"]


def test_what_cannot_be_used_is_listed_with_its_reason(pipeline, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "broken.mp4").write_bytes(b"\0" * 5000)
    make.render(folder / "no_sound.mp4")
    make.render(folder / "short.mp4", frames=20, sound_s=1)
    make.render(folder / "sound_ends.mp4", frames=50, sound_s=1.2)
    soundfile.write(folder / "silent.wav", np.zeros((RATE, 2)), RATE)
    write_noise(folder / "good.wav", 1.5)
    names = ["broken.mp4", "no_sound.mp4", "short.mp4", "sound_ends.mp4", "silent.wav", "absent.mp4"]
    sources = [source(folder / name) for name in [*names, "good.wav"]]
    prepared = prepare_clips(pipeline, sources, tmp_path / "p", duration_s=1, shard_size=3)
    assert PreparedClips(tmp_path / "p").names == ["sound_ends.mp4", "good.wav"]
    with (tmp_path / "p" / "skipped.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "reason"]
    reasons = dict(rows[1:])
    assert [(each.name, each.reason) for each in prepared.skipped] == list(reasons.items())
    for name, words in (
        ("broken.mp4", "damaged"),
        ("no_sound.mp4", "no sound that can be read"),
        ("short.mp4", "lasts 0.80 s; clips of 1 s are wanted"),
        ("sound_ends.mp4@1", "its sound ends 0.79 s before"),
        ("silent.wav", "silent"),
        ("absent.mp4", "no such file"),
    ):
        assert words in reasons.pop(name), name
    assert not reasons


def test_nothing_usable_is_an_error_and_leaves_no_index(pipeline, tmp_path):
    with pytest.raises(InputError, match=r"nothing could be prepared: absent\.mp4: .*no such file.*1 more"):
        prepare_clips(pipeline, [source(tmp_path / "absent.mp4"), source(tmp_path / "b.mp4")], tmp_path / "p")
    assert not (tmp_path / "p" / "index.json").exists()
    with pytest.raises(InputError, match="no files are named"):
        prepare_clips(pipeline, [], tmp_path / "q")


def test_parts_make_what_one_run_makes(pipeline, made, tmp_path):
    first = prepare_clips(pipeline, MADE, tmp_path, duration_s=2, shard_size=2, part=(1, 2))
    assert (first.complete, first.shards, first.shards_wanted) == (False, 2, 3)
    with pytest.raises(InputError, match="not finished"):
        PreparedClips(tmp_path)
    assert prepare_clips(pipeline, MADE, tmp_path, duration_s=2, shard_size=2, part=(2, 2)).complete
    assert contents(tmp_path) == contents(made)


def test_a_changed_table_makes_only_its_own_shards_again(pipeline, tmp_path):
    files = [write_noise(tmp_path / f"{index}.wav", 1, index) for index in range(3)]
    before = [source(path) for path in files]
    prepare_clips(pipeline, before, tmp_path / "p", duration_s=1, shard_size=2)
    kept = (tmp_path / "p" / "clips-00000.safetensors").stat().st_mtime_ns
    after = [*before, source(write_noise(tmp_path / "3.wav", 1, 3), "another")]
    assert prepare_clips(pipeline, after, tmp_path / "p", duration_s=1, shard_size=2).clips == 4
    assert (tmp_path / "p" / "clips-00000.safetensors").stat().st_mtime_ns == kept
    prepare_clips(pipeline, after, tmp_path / "q", duration_s=1, shard_size=2)
    assert contents(tmp_path / "p") == contents(tmp_path / "q")


def test_a_damaged_shard_is_named_and_made_again(pipeline, made, tmp_path):
    for name, content in contents(made).items():
        (tmp_path / name).write_bytes(content)
    shard = tmp_path / "clips-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"clips-00001\.safetensors: missing or damaged"):
        PreparedClips(tmp_path).batch([0, 3])
    prepare_clips(pipeline, MADE, tmp_path, duration_s=2, shard_size=2)
    assert contents(tmp_path) == contents(made)


def test_a_folder_keeps_to_one_length_and_one_set_of_weights(pipeline, made, tmp_path):
    before = contents(made)
    with pytest.raises(InputError, match="holds clips of 2 s for tiny, wanted are 3 s for tiny"):
        prepare_clips(pipeline, MADE, made, duration_s=3, shard_size=2)
    other = thinksound.load("tiny", device="cpu")
    with torch.no_grad():
        other.model.sound_encoder.get_parameter("out.bias").add_(0.1)
    with pytest.raises(InputError, match="other weights of tiny"):
        prepare_clips(other, MADE, made, duration_s=2, shard_size=2)
    assert contents(made) == before


def test_clips_are_checked_against_the_preset_that_they_shall_train(made, tmp_path):
    clips = PreparedClips(made)
    clips.check(TINY)
    with pytest.raises(InputError, match="for tiny, whose encoders are not those of thinksound-light"):
        clips.check(LIGHT)
    for name, content in contents(made).items():
        (tmp_path / name).write_bytes(content)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shapes"]["sync_features"][1] += 1
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"prepared with sync_features \[.*tiny has .*--preset tiny"):
        PreparedClips(tmp_path).check(TINY)


def test_a_folder_that_is_no_preparation_says_so(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        PreparedClips(tmp_path / "absent")
    with pytest.raises(InputError, match="no prepared clips"):
        PreparedClips(tmp_path)
    for text, words in (
        ("{", "not an index"),
        ('{"format": 1}', "not an index"),
        ('{"format": 9}', "format 9"),
    ):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(InputError, match=words):
            PreparedClips(tmp_path)


@pytest.mark.parametrize("duration_s", [0.5, 61, float("nan")])
def test_lengths_that_no_clip_has_are_refused(pipeline, tmp_path, duration_s):
    with pytest.raises(InputError, match="give 1 to 60 s"):
        prepare_clips(pipeline, MADE, tmp_path / "p", duration_s=duration_s)
    assert not (tmp_path / "p").exists()


# Tables


def table(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_csv_and_json_lines_say_the_same(tmp_path):
    for name in ("a.mp4", "b.c.wav", "notes.txt"):
        (tmp_path / name).touch()
    rows = table(
        tmp_path,
        "t.csv",
        '\ufefffile,caption,cot,more\na.mp4,"rain, wind",heavy rain,1\nb.c,steps,,2\nabsent,x,y,3\n',
    )
    lines = table(
        tmp_path,
        "t.jsonl",
        '{"id": "a", "caption": "rain, wind", "caption_cot": "heavy rain"}\n\n'
        '{"id": "b.c", "caption": "steps", "more": 2}\n{"id": "absent", "caption": "x", "cot": "y"}\n',
    )
    from_csv, from_lines = read_table(rows, tmp_path), read_table(lines, tmp_path)
    assert [(s.path.name, s.caption, s.cot) for s in from_csv] == [
        ("a.mp4", "rain, wind", "heavy rain"),
        ("b.c.wav", "steps", ""),
        ("absent", "x", "y"),
    ]
    assert [s.path for s in from_lines] == [s.path for s in from_csv]
    assert [s.caption for s in from_lines] == [s.caption for s in from_csv]
    assert from_lines[1].cot == "steps"  # there is no such column


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "file,text\na.mp4,x\n", "no column caption; there is file, text"),
        ("t.csv", "caption\nx\n", "no column file or path or video or id"),
        ("t.csv", "file,caption\n", "names no file"),
        ("t.csv", "", "names no file"),
        ("t.csv", "file,caption\n,x\n", "line 2: file is empty"),
        ("t.csv", "file,caption\n\nfilm.mp4,a ball, bouncing\n", "line 3: 3 values where .* 2 columns"),
        (
            "t.csv",
            "file,caption,cot\nfilm.mp4,a ball, bouncing, twice\n",
            "line 2: 4 values .* double quotes",
        ),
        ("t.csv", 'file,caption\na,"two\nlines"\nb,x, y\n', "line 4: 3 values"),
        ("t.csv", "file,caption\na.mp4\n", "line 2: 1 value where .* 2 columns .*: the caption is missing"),
        ("t.csv", 'file,caption\na.mp4,"never closed\nb.mp4,x\n', "not a CSV file"),
        ("t.csv", "file;caption\na.mp4;a ball, bouncing\n", "line 1: columns separated by semicolons"),
        ("t.csv", "file\tcaption\na.mp4\tx\n", "line 1: columns separated by tabs"),
        ("t.csv", "file,caption,Caption\na.mp4,x,y\n", "line 1: two columns are named caption"),
        ("t.jsonl", '{"file": "a", "caption": "x", "caption": "y"}\n', "line 1: 'caption' is given twice"),
        ("t.jsonl", '{"file": "a", "caption": "x"}\n{"file": "a"\n', "line 2: not a JSON object"),
        ("t.jsonl", "[" * 100_000 + "\n", "line 1: not a JSON object"),
        ("t.jsonl", "[1]\n", "line 1: .* no row"),
        ("t.jsonl", '{"file": "a", "caption": 3}\n', "caption is 3; give a text"),
        ("t.jsonl", '{"file": "a", "caption": "b"}\n{"file": "a"}\n', "line 2: no column caption"),
        ("t.xlsx", "", "not a table that is read here"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, name, text, words):
    with pytest.raises(InputError, match=words):
        read_table(table(tmp_path, name, text), tmp_path)


def test_tables_as_spreadsheets_write_them(tmp_path):
    rows = table(
        tmp_path,
        "t.csv",
        'File , Caption,cot,,\r\na,"a ball, bouncing", "drops, bounces",,\r\nb,x\r\n,,,,\r\n',
    )
    assert [(s.name, s.caption, s.cot) for s in read_table(rows, tmp_path)] == [
        ("a", "a ball, bouncing", "drops, bounces"),
        ("b", "x", ""),
    ]


def test_tables_and_folders_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        read_table(tmp_path / "absent.csv", tmp_path)
    with pytest.raises(InputError, match="absent: no such folder"):
        read_table(tmp_path / "t.csv", tmp_path / "absent")
    (tmp_path / "latin.csv").write_bytes("file,caption\na,\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match="not a CSV file in UTF-8"):
        read_table(tmp_path / "latin.csv", tmp_path)


def test_a_name_that_fits_two_files_is_asked_about(tmp_path):
    for name in ("a.mp4", "a.wav", "a.json"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"line 2: a may be a\.mp4 or a\.wav; give the ending"):
        read_table(table(tmp_path, "t.csv", "id,caption\na,x\n"), tmp_path)


# The command


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "thinksound", "prepare", *map(str, arguments)]


def test_files_and_made_clips_become_one_folder(tmp_path):
    write_noise(tmp_path / "n.wav", 2)
    make.render(tmp_path / "v.mp4", frames=50, sound_s=2)
    table(tmp_path, "t.csv", "id,caption\nn,noise\nv,a tone\nabsent,x\n")
    done = subprocess.run(
        command(
            tmp_path, "--captions", tmp_path / "t.csv", "--made", "standard:1000000:1", "--made", "hard:7:1",
            "-o", tmp_path / "p", "--preset", "tiny", "--device", "cpu", "--duration", 2,
        ),
        capture_output=True, text=True, timeout=600, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'p'}\n"
    assert "4 clips" in done.stderr
    assert "Note: 1 skipped, the first absent:" in done.stderr
    clips = PreparedClips(tmp_path / "p")
    assert clips.names == ["standard-1000000", "hard-000007", "n", "v"]
    assert clips.batch(range(4)).has_video.tolist() == [True, True, False, True]


def test_a_killed_preparation_goes_on_to_the_same_bytes(made, tmp_path):
    work = command(
        "--made", f"standard:{MADE[0].seed}:{len(MADE)}", "-o", tmp_path, "--preset", "tiny",
        "--device", "cpu", "--duration", 2, "--shard-size", 2,
    )  # fmt: skip
    first = tmp_path / "clips-00000.safetensors"
    process = subprocess.Popen(work, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not first.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "index.json").exists(), "killed too late to show anything"
    kept = first.stat().st_mtime_ns
    subprocess.run(work, cwd=ROOT, check=True, capture_output=True, timeout=600)
    assert first.stat().st_mtime_ns == kept
    there = {name: content for name, content in contents(tmp_path).items() if not name.endswith(".part")}
    assert there == contents(made)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give FOLDER with --captions TABLE, or --made"),
        (["files"], "FOLDER and --captions belong together"),
        (["--captions", "t.csv", "--made", "hard:0:1"], "FOLDER and --captions belong together"),
        (["files", "--captions", "t.csv"], "files: no such folder"),
        (["--made", "hard:0:1", "--shard-size", "0"], "--shard-size 0"),
        (["--made", "hard:0:1", "--workers", "0"], "--workers 0"),
    ],
)
def test_bad_arguments_are_answered_with_a_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *arguments, "-o", "p"]) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["--made", "soft:0:1"], ["--made", "hard:0:0"], ["--made", "hard:4294967295:2"], ["--part", "3/2"]],
)
def test_arguments_of_no_known_form_are_refused(capsys, arguments):
    with pytest.raises(SystemExit):
        main(["prepare", *arguments, "-o", "p"])
    assert repr(arguments[1]) in capsys.readouterr().err
