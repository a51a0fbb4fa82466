"""Cog's HTTP server with the predictor for MMAudio and its small networks, over real requests."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import soundfile
import yaml
from support.clips import seconds
from support.images import WIDTH, write_claim, write_image
from support.paths import ROOT
from support.server import Loopback, Server, data_url

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Cog's server runs on Linux"),
]

SHORT, SECOND = "cfr30_0p3s.mp4", "cfr25_1p0s.mp4"
FAST = {"num_steps": 2, "seed": 1}
SOUND = {**FAST, "duration": 1.0}  # of requests without a video


MMAUDIO = "predict.py:MMAudioPredictor"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # As docs/http.md says: one line of cog.yaml chooses the class.
    config = (ROOT / "cog.yaml").read_text()
    chosen = config.replace('predict: "predict.py:Predictor"', f'predict: "{MMAUDIO}"')
    started = Server(
        tmp_path_factory.mktemp("server"),
        predict=yaml.safe_load(chosen)["predict"],
        THINKSOUND_PRESET="mmaudio-tiny",
        MALLOC_ARENA_MAX="1",
    )
    with contextlib.closing(started):
        started.wait_for("READY")
        yield started


@pytest.fixture
def image(tmp_path: Path) -> str:
    return data_url(write_image(tmp_path / "picture.png"))


def output_of(answer: dict[str, Any], folder: Path, kind: str = "video/mp4") -> Path:
    """The file in a successful answer."""
    assert answer["status"] == "succeeded", answer
    head, content = answer["output"].split(",", 1)
    assert head == f"data:{kind};base64"
    path = folder / f"{answer['id']}.{kind.rpartition('/')[2]}"
    path.write_bytes(base64.b64decode(content))
    return path


def picture_packets(path: Path) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def test_inputs_are_those_of_the_published_model(server: Server) -> None:
    status, schema = server.request("GET", "/openapi.json")
    assert status == 200
    inputs = schema["components"]["schemas"]["Input"]
    ordered = sorted(inputs["properties"], key=lambda name: inputs["properties"][name]["x-order"])
    kept = ("type", "format", "default", "minimum", "maximum")
    held = {
        name: {key: value for key, value in inputs["properties"][name].items() if key in kept}
        for name in ordered
    }
    text, number, whole = (["string", "null"], ["number", "null"], ["integer", "null"])
    file = {"type": text, "format": "uri", "default": None}
    assert list(held.items()) == [
        ("prompt", {"type": text, "default": ""}),
        ("negative_prompt", {"type": text, "default": "music"}),
        ("video", file),
        ("duration", {"type": number, "default": 8.0, "minimum": 1.0}),
        ("num_steps", {"type": whole, "default": 25}),
        ("cfg_strength", {"type": number, "default": 4.5, "minimum": 1.0}),
        ("seed", {"type": whole, "default": None, "minimum": -1}),
        ("image", file),
    ]
    assert inputs.get("required", []) == []
    assert "preset mmaudio-tiny: clip cpu float32" in server.wait_for("READY")["setup"]["logs"]


def test_a_video_keeps_its_pictures_and_its_length(server: Server, clips: Path, tmp_path: Path) -> None:
    answer = server.predict(video=data_url(clips / SECOND), prompt="rain", **FAST)
    output = output_of(answer, tmp_path)
    assert picture_packets(output) == picture_packets(clips / SECOND)
    with av.open(output) as container:
        sound = container.streams.audio[0]
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", 16_000, 1)
        # The default of 8 s is the most that is used of a video.
        assert seconds(sound.duration, sound.time_base) == pytest.approx(1.0, abs=1e-3)
        wanted = {
            "seed": "1",
            "caption": "rain",
            "negative_prompt": "music",
            "preset": "mmaudio-tiny",
            "cfg_scale": "4.5",
            "num_inference_steps": "2",
        }
        assert wanted.items() <= container.metadata.items()
    metrics = answer["metrics"]
    assert (metrics["steps"], metrics["seed"], metrics["audio_seconds"]) == (2, 1, 1.0)
    assert sorted(metrics["timing"]) == ["decode", "encode", "mux", "sample", "vae"]
    lines = answer["logs"].splitlines()
    assert lines[-1] == "seed 1" and "sample 2/2" in lines


def test_an_image_is_shown_while_it_sounds(server: Server, image: str, tmp_path: Path) -> None:
    answer = server.predict(image=image, prompt="rain", **{**SOUND, "duration": 1.5})
    with av.open(output_of(answer, tmp_path)) as container:
        assert container.duration == 1_500_000
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.video[0].width == WIDTH
    assert answer["metrics"]["audio_seconds"] == 1.5


@pytest.mark.parametrize("prompt", ["rain", ""])
def test_a_prompt_alone_gives_a_sound(server: Server, tmp_path: Path, prompt: str) -> None:
    answer = server.predict(prompt=prompt, **SOUND)
    sound = soundfile.info(output_of(answer, tmp_path, "audio/flac"))
    assert (sound.format, sound.frames, sound.samplerate, sound.channels) == ("FLAC", 16_000, 16_000, 1)
    assert server.leftovers == ["thinksound.flac"]


def test_where_there_is_a_video_the_image_is_not_even_fetched(server: Server, clips: Path) -> None:
    video = data_url(clips / SHORT)
    alone = server.predict(video=video, **FAST)
    both = server.predict(video=video, image="http://127.0.0.1:9/nowhere.png", **FAST)
    assert both["output"] == alone["output"]
    assert server.leftovers == ["thinksound.mp4"]


def test_files_on_the_web(server: Server, clips: Path, image: str, tmp_path: Path) -> None:
    (tmp_path / SHORT).write_bytes((clips / SHORT).read_bytes())
    with contextlib.closing(Loopback(tmp_path)) as web:
        for inputs, name in (
            ({"video": data_url(clips / SHORT)}, SHORT),
            ({"image": image, "duration": 1.0}, "picture.png"),
        ):
            kind = next(iter(inputs))
            fetched = server.predict(**{**FAST, **inputs, kind: f"{web.url}/{name}"})
            assert fetched["status"] == "succeeded", fetched
            assert fetched["output"] == server.predict(**FAST, **inputs)["output"]


def test_the_seed_decides_and_minus_one_draws_one(server: Server) -> None:
    first, same, other = (server.predict(**{**SOUND, "seed": seed})["output"] for seed in (1, 1, 0))
    assert first == same != other
    drawn = [server.predict(**{**SOUND, "seed": seed})["metrics"]["seed"] for seed in (-1, -1, None)]
    assert len(set(drawn)) == 3 and all(0 <= seed < 2**32 for seed in drawn)


def test_without_a_negative_prompt_there_is_no_music(server: Server) -> None:
    def output(**inputs: Any) -> str:
        return server.predict(prompt="rain", **SOUND, **inputs)["output"]

    assert output() == output(negative_prompt="music") == output(negative_prompt=None)
    assert len({output(), output(negative_prompt=""), output(negative_prompt="speech")}) == 3


def test_null_is_the_same_as_left_out(server: Server) -> None:
    nothing = dict.fromkeys(("prompt", "negative_prompt", "video", "cfg_strength", "image"))
    assert server.predict(**SOUND, **nothing)["output"] == server.predict(**SOUND)["output"]
    metrics = server.predict(num_steps=None, duration=None, seed=3)["metrics"]
    assert (metrics["steps"], metrics["audio_seconds"]) == (25, 8.0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"num_steps": 0}, "num_steps 0 is out of range; give a whole number from 1 to 100"),
        ({"num_steps": 101}, "num_steps 101 is out of range"),
        ({"cfg_strength": 20.5}, "cfg_strength 20.5 is out of range; give a number from 1 to 20"),
        ({"duration": 181}, "duration 181 is out of range; give a number from 0.1 to 180"),
        ({"seed": 2**32}, "seed 4294967296 is out of range; give a whole number from 0 to 4294967295"),
        ({"prompt": "x" * 20_000}, "prompt has 20,000 characters; at most 10,000 are allowed"),
        ({"negative_prompt": "x" * 20_000}, "negative_prompt has 20,000 characters"),
        ({"image": "/etc/hostname"}, "image '/etc/hostname' is no URL; give an http, https or data URL"),
        ({"video": "file:///etc/hostname"}, "video 'file:///etc/hostname' is no URL"),
        ({"image": "data:image/png;base64,A"}, "image: a damaged data URL"),
        ({"image": "http://127.0.0.1:9/a.png"}, "image: 127.0.0.1 does not give it"),
        ({"image": "data:image/png;base64,AAAA"}, "image: not an image; give a PNG, JPEG or WebP file"),
        ({"video": "data:video/mp4;base64,AAAA"}, "video: not a video"),
    ],
)
def test_errors_name_the_models_own_inputs(server: Server, inputs: dict[str, Any], message: str) -> None:
    answer = server.predict(**{**SOUND, **inputs})
    assert answer["status"] == "failed"
    assert re.search(rf"(Input|Media)Error: {re.escape(message)}", answer["error"]), answer["error"]
    assert server.predict(**SOUND)["status"] == "succeeded"
    assert server.leftovers == ["thinksound.flac"]
    assert "Traceback" not in server.log.read_text()


def test_an_image_that_is_too_large_or_damaged(server: Server, tmp_path: Path) -> None:
    large = write_claim(tmp_path / "large.png", 11_000, 11_000)
    cut = write_image(tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:150])
    for path, message in ((large, "image: more than 35,651,584 pixels"), (cut, "image: cannot be read (")):
        answer = server.predict(image=data_url(path), **SOUND)
        assert answer["status"] == "failed" and f"MediaError: {message}" in answer["error"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"duration": 0.5}, "0.5 is less than the minimum of 1.0"),
        ({"cfg_strength": 0.5}, "0.5 is less than the minimum of 1.0"),
        ({"seed": -2}, "-2 is less than the minimum of -1"),
        ({"num_steps": 10.5}, '10.5 is not of types "integer", "null"'),
        ({"prompt": 5}, '5 is not of types "null", "string"'),
        ({"image": 5}, '5 is not of types "null", "string"'),
    ],
)
def test_inputs_that_are_refused(server: Server, inputs: dict[str, Any], message: str) -> None:
    server.wait_for("READY")
    status, answer = server.request("POST", "/predictions", {"input": {**SOUND, **inputs}})
    assert status == 422
    (detail,) = answer["detail"]
    assert (detail["loc"], detail["msg"]) == (["body", "input", *inputs], message)


def test_words_that_are_not_read_are_in_the_log(server: Server) -> None:
    answer = server.predict(prompt="ball " * 200, **SOUND)
    assert "note: prompt: CLIP reads only the first 75 of 200 words" in answer["logs"]


@pytest.mark.parametrize(
    ("predict", "preset", "words"),
    [
        (
            MMAUDIO,
            "tiny",
            "THINKSOUND_PRESET tiny has other inputs than MMAudioPredictor of predict.py; give one",
        ),
        (
            "predict.py:Predictor",
            "mmaudio-tiny",
            "give one of thinksound-light, thinksound, tiny, or another class",
        ),
    ],
)
def test_a_preset_of_the_other_class_is_refused_at_the_start(
    tmp_path: Path, predict: str, preset: str, words: str
) -> None:
    failing = Server(tmp_path, predict=predict, THINKSOUND_PRESET=preset)
    with contextlib.closing(failing):
        failing.wait_for("SETUP_FAILED")
        assert words in failing.log.read_text()


def test_setup_without_weights_says_what_to_put_where(tmp_path: Path) -> None:
    failing = Server(tmp_path, predict=MMAUDIO, THINKSOUND_WEIGHTS=str(tmp_path / "weights"))
    with contextlib.closing(failing):
        logs = failing.wait_for("SETUP_FAILED")["setup"]["logs"]
    assert "mmaudio_large_44k_v2.pth, from hkchengrex/MMAudio" in logs
