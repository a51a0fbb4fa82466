"""`thinksound generate` with mmaudio-tiny: videos, images and texts in, files that others open out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file
from support.clips import seconds
from support.images import WIDTH, write_animation, write_claim, write_image
from support.paths import ROOT

from thinksound.cli import main

pytestmark = pytest.mark.slow

FAST = ("--preset", "mmaudio-tiny", "--steps", "2", "--device", "cpu", "--seed", "7")
VIDEO, RATE = "cfr25_1p0s.mp4", 16_000


@pytest.fixture
def here(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a video, an image and an animation."""
    (tmp_path / VIDEO).write_bytes((clips / VIDEO).read_bytes())
    write_image(tmp_path / "picture.png")
    write_animation(tmp_path / "moving.gif")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture_packets(path: Path | str) -> list[tuple[bytes, float]]:
    """The bytes of each packet, and when it is shown in seconds."""
    with av.open(str(path)) as container:
        return [
            (bytes(packet), seconds(packet.pts, packet.time_base))
            for packet in container.demux(video=0)
            if packet.size
        ]


def lengths(path: Path | str) -> dict[str, tuple[str, float]]:
    """Kind of stream to its codec and its seconds."""
    with av.open(str(path)) as container:
        return {
            each.type: (each.codec_context.name, seconds(each.duration, each.time_base))
            for each in container.streams
        }


def test_a_video_keeps_its_pictures_bit_for_bit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--caption", "rain", "--negative-prompt", "music", "-o", "out.mp4")
    also = ("--audio", "out.wav", "--dump", "out.safetensors")
    assert main(["generate", VIDEO, *words, *also, *FAST]) == 0
    text = capsys.readouterr()
    assert text.out.splitlines() == ["out.mp4", "out.wav", "out.safetensors"]
    assert "Loading mmaudio-tiny\n" in text.err and "Seed 7\n" in text.err and "Note:" not in text.err
    assert picture_packets("out.mp4") == picture_packets(VIDEO)
    assert lengths("out.mp4") == {
        "video": ("h264", 1.0),
        "audio": ("aac", pytest.approx(1.0, abs=1e-3)),
    }
    with av.open("out.mp4") as container:
        metadata = dict(container.metadata)
        assert container.streams.audio[0].channels == 1
    wanted = {"seed": "7", "caption": "rain", "negative_prompt": "music", "preset": "mmaudio-tiny"}
    assert wanted.items() <= metadata.items() and "cot" not in metadata
    sound = soundfile.info("out.wav")
    assert (sound.frames, sound.samplerate, sound.channels) == (RATE, RATE, 1)
    shapes = {name: array.shape for name, array in load_file("out.safetensors").items()}
    assert shapes == {
        "clip_frames": (8, 384, 384, 3),
        "sync_frames": (25, 224, 224, 3),
        "clip_features": (8, 32),
        "sync_features": (16, 48),
        "text_features": (77, 16),
        "negative_text_features": (77, 16),
        "noise": (8, 32),
        "latents": (8, 32),
        "waveform": (1, 32 * 512),
    }


def test_several_videos_and_the_first_seconds_of_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", VIDEO, "moving.gif", "-o", "results/", "--duration", "0.5", "--mask-away-clip"]
    assert main([*command, "--caption", "rain", *FAST]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == ["results/cfr25_1p0s_sound.mp4", "results/moving_sound.mp4"]
    assert lengths(names[0])["audio"] == ("aac", pytest.approx(0.5, abs=1e-3))
    assert lengths(names[1])["audio"] == ("aac", pytest.approx(0.2, abs=1e-3))


def test_an_image_becomes_a_video_or_a_sound(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--image", "picture.png", "--duration", "1.5", "-q", *FAST]
    for arguments, name in (
        ([], "picture_sound.mp4"),
        ([], "picture_sound-2.mp4"),
        (["-o", "a/"], "a/picture_sound.mp4"),
    ):
        assert main([*command, *arguments]) == 0
        assert capsys.readouterr().out == f"{name}\n"
        assert lengths(name) == {"video": ("h264", 1.5), "audio": ("aac", pytest.approx(1.5, abs=1e-3))}
    with av.open("picture_sound.mp4") as container:
        assert next(container.decode(video=0)).width == WIDTH
    sounds = {}
    for name in ("a.wav", "a.flac"):
        assert main([*command, "-o", name]) == 0
        sounds[name], rate = soundfile.read(name, dtype="int16")
        assert rate == RATE and sounds[name].shape == (24_000,)
    assert np.array_equal(sounds["a.wav"], sounds["a.flac"])
    assert (here / "picture_sound.mp4").read_bytes() == (here / "picture_sound-2.mp4").read_bytes()


def test_an_animation_given_as_an_image_is_its_first_frame(here: Path) -> None:
    command = ["generate", "--image", "moving.gif", "--duration", "0.5", "-q", *FAST]
    assert main([*command, "-o", "a.mp4"]) == 0
    assert lengths("a.mp4")["video"] == ("h264", 0.5)


def test_a_text_becomes_a_sound(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--caption", "rain on a roof", *FAST]
    assert main([*command, "--audio", "copy.wav"]) == 0
    assert capsys.readouterr().out.splitlines() == ["sound.wav", "copy.wav"]
    assert soundfile.info("sound.wav").frames == 8 * RATE
    assert (here / "sound.wav").read_bytes() == (here / "copy.wav").read_bytes()
    assert main([*command, "--duration", "2.5", "-o", "new.flac"]) == 0
    sound = soundfile.info("new.flac")
    assert (sound.format, sound.frames, sound.channels) == ("FLAC", 40_000, 1)


def test_as_a_process(here: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "thinksound", "generate"),
            *("--image", "picture.png", "--duration", "0.5", *FAST),
        ],
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "picture_sound.mp4\n"
    assert "Sampling 2/2\n" in done.stderr and "Traceback" not in done.stderr


BAD_REQUESTS = {
    "chain of thought": (
        (VIDEO, "--cot", "first rain"),
        "--cot is not read by mmaudio-tiny; it reads caption and negative_prompt",
    ),
    "chain of thought alone": (("--cot", "first rain"), "--cot is not read by mmaudio-tiny"),
    "negative prompt of tiny": (
        (VIDEO, "--negative-prompt", "music", "--preset", "tiny"),
        "--negative-prompt is not read by tiny; it reads caption and cot",
    ),
    "masked pictures of tiny": (
        (VIDEO, "--mask-away-clip", "--preset", "tiny"),
        "--mask-away-clip is not an option of tiny; leave it out",
    ),
    "reader of tiny": (
        (VIDEO, "--reader", "mmaudio", "--preset", "tiny"),
        "--reader is not an option of tiny",
    ),
    "image and video": (
        (VIDEO, "--image", "picture.png"),
        "--image picture.png: a video is given too; give one of them",
    ),
    "masked pictures of a text": (
        ("--caption", "rain", "--mask-away-clip"),
        "--mask-away-clip is given without a video; leave it out",
    ),
    "masked pictures of an image": (
        ("--image", "picture.png", "--mask-away-clip"),
        "--mask-away-clip is given without a video; leave it out",
    ),
    "image that is missing": (("--image", "nowhere.png"), "nowhere.png: file not found; check the path"),
    "image that is damaged": (("--image", "cut.png"), "cut.png: cannot be read ("),
    "image that is huge": (("--image", "huge.png"), "huge.png: more than 35,651,584 pixels; make it smaller"),
    "image that is a text": (
        ("--image", "notes.png"),
        "notes.png: not an image; give a PNG, JPEG or WebP file",
    ),
    "image that is a video": (("--image", VIDEO), f"{VIDEO}: not an image"),
    "video that is an image": (("picture.png",), "picture.png: this is a still picture (PNG)"),
    "text as a video": (
        ("--caption", "rain", "-o", "out.mp4"),
        "-o out.mp4: there is no picture to show; give",
    ),
    "image as another film": (("--image", "picture.png", "-o", "out.avi"), "out.avi: "),
    "text that is endless": (("--negative-prompt", "x" * 20_000, VIDEO), "--negative-prompt has 20,000"),
    "duration": (("--caption", "rain", "--duration", "181"), "--duration 181 is out of range"),
    "its own input": (("--image", "picture.png", "-o", "picture.png"), "picture.png: "),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_gives_one_message_before_anything_is_loaded(
    arguments: tuple[str, ...], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (here / "picture.png").read_bytes()
    (here / "cut.png").write_bytes(whole[:120])
    (here / "notes.png").write_text("notes")
    write_claim(here / "huge.png", 11_000, 11_000)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert main(["generate", *FAST, *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"thinksound: error: {message}")
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--preset", "tiny", "--caption", "rain"),
            "tiny needs a video; the mmaudio presets do with an image",
        ),
        (("--preset", "tiny", "--image", "picture.png"), "tiny needs a video; the mmaudio presets do with"),
        ((), "nothing to make a sound of; give a VIDEO, an --image or a --caption"),
        (("--caption", "  "), "nothing to make a sound of"),
        (("--prompt", "rain"), "--prompt is not an option; did you mean --caption?"),
        (("--reader", "torio"), "invalid choice: 'torio'"),
    ],
)
def test_a_command_without_what_it_needs(
    arguments: tuple[str, ...], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["generate", *FAST, *arguments])
    assert exit.value.code == 2 and message in capsys.readouterr().err
