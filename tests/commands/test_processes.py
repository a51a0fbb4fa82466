"""The command line as a person meets it: real processes on real clips, the output opened again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file
from support import clips as make
from support.paths import ROOT

from thinksound.cli import main
from thinksound.rates import audio_sample_count

pytestmark = pytest.mark.slow

FAST = ("--preset", "tiny", "--steps", "2", "--device", "cpu")


def thinksound(*arguments: object, cwd: Path, check: bool = True, **environment: str):
    done = subprocess.run(
        [sys.executable, "-m", "thinksound", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert not check or done.returncode == 0, done.stderr
    return done


def streams(path: Path) -> dict[str, tuple[str, float, int]]:
    """Kind -> codec, duration in seconds, packets."""
    with av.open(str(path)) as container:
        found: dict[str, tuple[str, float, int]] = {}
        for stream in container.streams:
            packets = [p for p in container.demux(stream) if p.size]
            found[stream.type] = (
                stream.codec_context.name,
                make.seconds(stream.duration, stream.time_base),
                len(packets),
            )
            container.seek(0)
        return found


@pytest.fixture(scope="module")
def generated(tmp_path_factory, clips):
    """One request with everything written."""
    folder = tmp_path_factory.mktemp("generated")
    done = thinksound(
        "generate", clips / "cfr30_3p2s.mp4", "-o", "out.mp4", "--audio", "out.wav",
        "--dump", "out.safetensors", "--caption", "a ball", "--cot", "a ball bounces twice",
        "--seed", "0", *FAST, cwd=folder,
    )  # fmt: skip
    return folder, done


def test_the_output_is_the_video_with_sound_of_equal_length(generated):
    folder, done = generated
    found = streams(folder / "out.mp4")
    assert found["video"] == ("h264", pytest.approx(3.2, abs=1e-3), 96)
    assert found["audio"][0] == "aac"
    assert found["audio"][1] == pytest.approx(3.2, abs=0.03)
    samples, rate = soundfile.read(folder / "out.wav", dtype="int16")
    assert rate == 16_000 and samples.shape == (audio_sample_count(3.2, 16_000), 2)
    assert np.abs(samples.astype(int)).max() == 32767
    assert done.stdout.splitlines() == ["out.mp4", "out.wav", "out.safetensors"]
    assert "Reading the video 100/100\n" in done.stderr and "Sampling 2/2\n" in done.stderr


def test_seed_texts_and_preset_are_in_the_file_and_on_the_screen(generated):
    folder, done = generated
    assert "Seed 0" in done.stderr
    with av.open(str(folder / "out.mp4")) as container:
        metadata = {key.lower(): value for key, value in container.metadata.items()}
    wanted = {"seed": "0", "caption": "a ball", "cot": "a ball bounces twice", "preset": "tiny"}
    assert {key: metadata.get(key) for key in wanted} == wanted


def test_the_dump_holds_every_intermediate(generated):
    folder, _ = generated
    dump = load_file(folder / "out.safetensors")
    shapes = {name: (str(array.dtype), array.shape) for name, array in dump.items()}
    assert shapes == {
        "clip_frames": ("uint8", (25, 224, 224, 3)),
        "sync_frames": ("uint8", (80, 224, 224, 3)),
        "clip_features": ("float32", (25, 64)),
        "sync_features": ("float32", (72, 96)),
        "text_features": ("float32", (77, 64)),
        "t5_features": ("float32", (77, 128)),
        "noise": ("float32", (32, 100)),
        "latents": ("float32", (32, 100)),
        "waveform": ("float32", (2, 100 * 512)),
    }


def test_the_same_seed_gives_the_same_bytes_and_another_one_another_sound(
    generated, clips, monkeypatch, capsys
):
    folder, _ = generated
    monkeypatch.chdir(folder)
    texts = ["--caption", "a ball", "--cot", "a ball bounces twice"]
    request = ["generate", str(clips / "cfr30_3p2s.mp4"), *texts, "-q", *FAST]
    assert main([*request, "--seed", "0", "-o", "again.mp4"]) == 0
    assert main([*request, "--seed", "1", "-o", "other.mp4"]) == 0
    assert capsys.readouterr().err == ""
    first = (folder / "out.mp4").read_bytes()
    assert (folder / "again.mp4").read_bytes() == first
    assert (folder / "other.mp4").read_bytes() != first


def test_whole_floats_and_what_is_not_read_of_the_texts(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = ["--caption", "ball " * 200 + "of metal", "--cot", "Топор бьёт"]
    video = str(clips / "cfr30_0p3s.mp4")
    assert main(["generate", video, "--preset", "tiny", "--steps", "1.0", "--seed", "42.0", *texts]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "Seed 42" in lines
    notes = [line for line in lines if line.startswith("Note: ")]
    assert [note.partition(";")[0] for note in notes[:2]] == [
        "Note: caption: MetaCLIP reads only the first 75 of 202 words (77 tokens at most)",
        'Note: cot: T5 can read nothing of it ("Топор бьёт")',
    ]


def test_the_first_seconds_only(clips, tmp_path):
    request = ("generate", clips / "cfr25_10p04s.mp4", "--duration", "1", "--audio", "a.wav", *FAST)
    thinksound(*request, cwd=tmp_path)
    found = streams(tmp_path / "cfr25_10p04s_sound.mp4")
    assert found["video"][1] == pytest.approx(1.0, abs=1e-3)
    assert soundfile.info(tmp_path / "a.wav").frames == 16_000


def test_names_with_spaces_quotes_and_dashes(clips, tmp_path):
    name = "-my 'odd' \"clip\" é.mp4"
    (tmp_path / name).write_bytes((clips / "cfr25_1p0s.mp4").read_bytes())
    thinksound("generate", *FAST, "-o", "-out put.mp4".replace("-", "./-", 1), "--", name, cwd=tmp_path)
    assert streams(tmp_path / "-out put.mp4")["audio"][0] == "aac"


def test_several_videos_go_one_after_the_other_and_one_that_fails_is_named(
    clips, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, source in (("a/clip.mp4", "cfr25_1p0s.mp4"), ("b/clip.mov", "cfr30_3p2s.mp4")):
        Path(name).parent.mkdir()
        Path(name).write_bytes((clips / source).read_bytes())
    Path("a/broken.mp4").write_bytes(b"nothing")
    assert main(["generate", "a/*.mp4", "b/clip.mov", "nowhere.mp4", "-o", "new/results/", *FAST]) == 1
    text = capsys.readouterr()
    written = ["new/results/clip_sound.mp4", "new/results/clip_sound-2.mp4"]
    assert text.out.splitlines() == written
    assert [streams(Path(name))["video"][2] for name in written] == [25, 96]
    assert text.err.count("Loading tiny\n") == 1 and "b/clip.mov (2 of 2)\n" in text.err
    assert f"Note: {written[0]} exists and was kept, the new result is {written[1]}; " in text.err
    errors = [line for line in text.err.splitlines() if line.startswith("thinksound: error: ")]
    assert errors[0].startswith("thinksound: error: a/broken.mp4: not a video")
    assert errors[1].startswith("thinksound: error: nowhere.mp4: no such file")
    assert errors[2] == "thinksound: error: 2 of 4 videos got no sound: a/broken.mp4, nowhere.mp4"


def test_results_beside_their_videos_are_left_out(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes((clips / VIDEO).read_bytes())
    Path("clip_sound-3.mp4").write_bytes((clips / VIDEO).read_bytes())  # named like one, and none
    for _ in range(2):
        assert main(["generate", "*.mp4", *FAST]) == 0
    text = capsys.readouterr()
    assert text.out.split() == [
        *("clip_sound.mp4", "clip_sound-3_sound.mp4"),
        *("clip_sound-2.mp4", "clip_sound-3_sound-2.mp4"),
    ]
    left_out = [line.split(" is left out")[0] for line in text.err.splitlines() if " is left out" in line]
    assert left_out == ["Note: clip_sound-3_sound.mp4", "Note: clip_sound.mp4"]
    assert main(["generate", "clip_sound.mp4", "-q", *FAST]) == 0  # alone it is what is asked for
    assert streams(Path("clip_sound_sound.mp4"))["video"][2] == 25


def test_a_default_name_never_replaces_and_a_given_one_does(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *_ = names = [Path(f"cfr25_1p0s_sound{number}.mp4") for number in ("", "-2", "-3")]
    for path in names[:2]:
        path.write_text("someone else's")
    request = ["generate", str(clips / "cfr25_1p0s.mp4"), "-q", *FAST]
    assert main(request) == 0
    assert [path.read_bytes()[:7] == b"someone" for path in names] == [True, True, False]
    assert main([*request, "-o", str(first)]) == 0
    assert streams(first)["video"][2] == 25


VIDEO = "cfr25_1p0s.mp4"
BAD_REQUESTS = {
    "missing file": (("nothing.mp4",), "nothing.mp4: no such file"),
    "endless name": (("x" * 300 + ".mp4", "-o", "out.mp4"), "x.mp4: cannot be opened"),
    "directory": ((".",), "directory"),
    "not a number": (
        (VIDEO, "--cfg-scale", "nan"),
        "--cfg-scale nan is out of range; give a number from 1 to 20",
    ),
    "guidance too large": ((VIDEO, "--cfg-scale", "21"), "from 1 to 20"),
    "no steps": ((VIDEO, "--steps", "0"), "--steps 0 is out of range; give a whole number from 1 to 100"),
    "negative seed": (
        (VIDEO, "--seed", "-1"),
        "--seed -1 is out of range; give a whole number from 0 to 4294967295",
    ),
    "no duration": ((VIDEO, "--duration", "0"), "--duration 0 is out of range"),
    "endless caption": (
        (VIDEO, "--caption", "a" * 100_000),
        "--caption has 100,000 characters; at most 10,000",
    ),
    "endless cot and no weights": (
        (VIDEO, "--cot", "a" * 100_000, "--weights", "nowhere"),
        "--cot has 100,000 characters",
    ),
    "no folder": ((VIDEO, "-o", "nowhere/out.mp4"), "the folder nowhere does not exist"),
    "other ending": ((VIDEO, "-o", "out.avi"), "use .mp4"),
    "its own input": ((VIDEO, "-o", VIDEO), "this would replace an input"),
    "a folder that is a file": ((VIDEO, "-o", f"{VIDEO}/"), f"{VIDEO}: cannot be made a folder"),
    "nameless output": ((VIDEO, "-o", ""), "-o: the name is empty"),
    "URL": (("https://example.com/a.mp4",), "https://example.com/a.mp4: this is a URL"),
    "several into one file": (
        (VIDEO, VIDEO, "-o", "out.mp4"),
        "-o out.mp4: 2 videos were given; give a folder, such as -o results/",
    ),
    "several sounds into one file": ((VIDEO, VIDEO, "--audio", "out.wav"), "--audio takes one video"),
    "several dumps into one file": ((VIDEO, VIDEO, "--dump", "x.safetensors"), "--dump takes one video"),
    "text without quotes": (
        ("--caption", "a", "dog", VIDEO),
        "dog: no such file; a text of several words is",
    ),
    "no weights": ((VIDEO, "--preset", "thinksound-light", "--weights", "."), "thinksound_light.ckpt"),
    "weights that are a file": ((VIDEO, "--weights", VIDEO), f"{VIDEO}: this is a file; give the folder"),
    "no GPU": ((VIDEO, "--device", "cuda:7"), "cuda:7 is not there"),
    "unknown device": ((VIDEO, "--device", "tpu"), "--device 'tpu' is not known; give auto, cpu, cuda"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_gives_one_message_and_no_file(
    arguments, message, clips, tmp_path, monkeypatch, capsys
):
    (tmp_path / VIDEO).write_bytes((clips / VIDEO).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--preset", "tiny", *arguments]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Loading")]
    assert errors[0].startswith("thinksound: error: ")
    assert message in "\n".join(errors)
    assert [path.name for path in tmp_path.iterdir()] == [VIDEO]


def test_a_bad_request_ends_a_process_without_a_traceback(tmp_path):
    done = thinksound("generate", "nothing.mp4", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == "thinksound: error: nothing.mp4: no such file; check the name and the folder\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--steps", "1,000"),
            "--steps: '1,000' is not a whole number; give a whole number from 1 to 100",
        ),
        (("--cfg-scale", "4,5"), "--cfg-scale: '4,5' is not a number; give a number from 1 to 20"),
        (("--cfg_scale", "4"), "--cfg_scale is not an option; did you mean --cfg-scale?"),
        (("--guidance-scale=4",), "--guidance-scale is not an option; did you mean --cfg-scale?"),
        (("--num-inference-steps", "24"), "--num-inference-steps is not an option; did you mean --steps?"),
        (("--captoin", "a dog"), "--captoin is not an option; did you mean --caption?"),
        (("-i", "x.mp4"), "-i is not an option; see --help"),
        (("--seed", "42.5"), "argument --seed: '42.5' is not a whole number"),
        (("--seed", "inf"), "argument --seed: 'inf' is not a whole number"),
        (("--duration", "long"), "'long' is not a number"),
        (("--preset", "huge"), "invalid choice: 'huge'"),
    ],
)
def test_arguments_that_cannot_be_read(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["generate", "x.mp4", *arguments])
    assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clip.mp4",), "clip.mp4 is no command; did you mean `thinksound generate clip.mp4`?"),
        (("--seed", "7", "generate", "x.mp4"), "--seed: the command comes first, as in"),
        (("info", "a.mp4", "b.mp4"), "thinksound info: error: b.mp4: not expected here"),
    ],
)
def test_words_in_the_wrong_place(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_help_answers_at_once(tmp_path):
    start = time.perf_counter()
    done = thinksound("--help", cwd=tmp_path)
    assert "generate" in done.stdout
    assert time.perf_counter() - start < 0.5


def test_info_about_a_video(clips, capsys):
    assert main(["info", str(clips / "rotated90_30_1p0s.mp4")]) == 0
    text = capsys.readouterr().out
    assert "turned by" in text and "1.000 s of presented pictures" in text and "8 at 8 fps" in text


def test_info_about_the_installation(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "thinksound-light" in text and "torch 2." in text and "mmdit.safetensors" in text


def test_where_the_weights_belong(tmp_path, capsys):
    assert main(["weights", "path", "--weights", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"missing  {tmp_path}/t5-v1_1-xl" in text
    assert text.count("missing") == 5


def test_where_a_network_of_which_only_the_converted_copy_is_here_lies(tmp_path, capsys):
    copy = tmp_path / "converted" / "vae.safetensors"
    copy.parent.mkdir()
    copy.touch()
    assert main(["weights", "path", "--weights", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"here     {copy}" in text and "vae.ckpt" not in text


@pytest.mark.parametrize("weights", [(), ("--weights", "random")])
def test_bench_prints_a_row_for_every_stage(weights):
    small = ("--duration", "0.3", "--size", "64x64", "--steps", "1", "--repeat", "1", "--device", "cpu")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench.py", *small, *weights],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\S.*?) {2,}.* ([\d,]+)$", done.stdout, re.M)
    stages = [stage.split(",")[0] for stage, _ in rows]
    assert stages == [
        "set-up",
        "decode",
        "caption (metaclip)",
        "cot (t5)",
        "frames (metaclip)",
        "frames (synchformer)",
        "all encoders",
        "condition projection",
        "one transformer step",
        "sampling",
        "latents to sound",
        "mux",
        "whole request",
    ]
    assert all(int(mebibytes.replace(",", "")) > 100 for _, mebibytes in rows)


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(clips, tmp_path, way):
    command = ["generate", clips / "cfr30_10p0s.mp4", "--preset", "tiny", "--steps", "100"]
    with subprocess.Popen(
        [sys.executable, "-m", "thinksound", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr and process.stderr.readline() == "Loading tiny\n"
        process.send_signal(way)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted, the result was not written" in errors
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_between_videos_keeps_the_results_that_are_there(clips, tmp_path):
    command = ["generate", clips / VIDEO, clips / "cfr30_10p0s.mp4", "--preset", "tiny", "--steps", "30"]
    with subprocess.Popen(
        [sys.executable, "-m", "thinksound", *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.readline() == "cfr25_1p0s_sound.mp4\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "thinksound: interrupted, the last result is cfr25_1p0s_sound.mp4\n" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["cfr25_1p0s_sound.mp4"]


def test_a_command_leaves_its_caller_as_it_was(capsys):
    before = signal.getsignal(signal.SIGTERM), sys.stdout, sys.stderr, sys.stdout.errors
    assert main(["info"]) == 0
    assert (signal.getsignal(signal.SIGTERM), sys.stdout, sys.stderr, sys.stdout.errors) == before


def test_an_interrupt_while_the_video_is_written_leaves_no_part_of_it(tmp_path):
    clip = make.render(tmp_path / "clip.mkv", codec="ffv1", frames=400, size=(640, 480))
    options = "--preset tiny --steps 1 -o out.mp4 --audio out.wav"
    command = ["generate", str(clip), *options.split()]
    with subprocess.Popen(
        [sys.executable, "-m", "thinksound", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(tmp_path.glob(".*.part")) or not (tmp_path / "out.wav").exists():
            assert process.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted, the result was not written" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "out.wav"]  # complete


def test_a_picture_that_mp4_cannot_hold_is_encoded_again_and_the_user_is_told(
    clips, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", str(clips / "gif_10_1p2s.gif"), *FAST]) == 0
    assert "Note: the picture was encoded again as H.264: MP4 is not made for gif" in capsys.readouterr().err
    assert streams(tmp_path / "gif_10_1p2s_sound.mp4")["video"][0] == "h264"
