"""Cog's HTTP server with the tiny preset, from its start to its end, over real requests."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import pytest
from support.clips import render, seconds
from support.paths import ROOT
from support.server import Loopback, Server, data_url

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Cog's server runs on Linux"),
]

# One heap for all threads: with one each, which Cog's threads fill in turn, memory settles late.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
SHORT, SECOND, LONG = "cfr30_0p3s.mp4", "cfr25_1p0s.mp4", "cfr30_10p0s.mp4"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"), THINKSOUND_PRESET="tiny", **ONE_HEAP)
    with contextlib.closing(started):
        started.wait_for("READY")
        yield started


@pytest.fixture(scope="module")
def web(clips: Path) -> Iterator[Loopback]:
    with contextlib.closing(Loopback(clips)) as loopback:
        yield loopback


@pytest.fixture
def good(clips: Path) -> dict[str, Any]:
    """Inputs of a request that works and takes half a second."""
    return {"video": data_url(clips / SHORT), "num_inference_steps": 10, "seed": 1}


def output_of(answer: dict[str, Any], folder: Path) -> Path:
    """The MP4 in a successful answer, as a file."""
    assert answer["status"] == "succeeded", answer
    head, content = answer["output"].split(",", 1)
    assert head == "data:video/mp4;base64"
    path = folder / f"{answer['id']}.mp4"
    path.write_bytes(base64.b64decode(content))
    return path


def picture_packets(path: Path) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_setup_reports_where_everything_runs(server: Server) -> None:
    health = server.wait_for("READY")
    assert server.states[0] == "STARTING"
    assert health["setup"]["status"] == "succeeded"
    assert "preset tiny: metaclip cpu float32, t5 cpu float32, synchformer cpu" in health["setup"]["logs"]
    # Cog's health check may miss what is written at the very end of the setup; the log has it.
    assert re.search(r"main memory: \d+\.\d GB", server.log.read_text())


def test_inputs_are_the_published_ones_and_one_more(server: Server) -> None:
    status, schema = server.request("GET", "/openapi.json")
    assert status == 200
    inputs = schema["components"]["schemas"]["Input"]
    ordered = sorted(inputs["properties"], key=lambda name: inputs["properties"][name]["x-order"])
    assert ordered == ["video", "caption", "cot", "cfg_scale", "num_inference_steps", "seed", "duration"]
    assert inputs["required"] == ["video"]
    kept = ("type", "format", "default", "minimum", "maximum", "nullable")
    assert {
        name: {key: value for key, value in inputs["properties"][name].items() if key in kept}
        for name in ordered[:-1]
    } == {
        "video": {"type": "string", "format": "uri"},
        "caption": {"type": ["string", "null"], "default": ""},
        "cot": {"type": ["string", "null"], "default": ""},
        "cfg_scale": {
            "type": ["number", "null"],
            "default": 5.0,
            "minimum": 1.0,
            "maximum": 20.0,
        },
        "num_inference_steps": {"type": ["integer", "null"], "default": 24, "minimum": 10, "maximum": 100},
        "seed": {"type": ["integer", "null"], "default": None, "nullable": True},
    }


def test_the_answer_is_the_video_with_sound(server: Server, clips: Path, tmp_path: Path) -> None:
    answer = server.predict(
        video=data_url(clips / SECOND), caption="rain", cot="soft rain", num_inference_steps=12, seed=7
    )
    output = output_of(answer, tmp_path)
    assert picture_packets(output) == picture_packets(clips / SECOND)
    with av.open(output) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        sound = container.streams.audio[0]
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", 16_000, 2)
        assert seconds(sound.duration, sound.time_base) == pytest.approx(1.0, abs=1e-3)
        pictures = container.streams.video[0]
        assert seconds(pictures.duration, pictures.time_base) == 1
        wanted = {"seed": "7", "caption": "rain", "cot": "soft rain", "preset": "tiny", "cfg_scale": "5"}
        assert wanted.items() <= container.metadata.items()

    metrics = answer["metrics"]
    assert (metrics["steps"], metrics["audio_seconds"], metrics["seed"]) == (12, 1.0, 7)
    assert metrics["audio_output_duration_seconds"] == metrics["video_output_duration_seconds"] == 1.0
    assert sorted(metrics["timing"]) == ["decode", "encode", "mux", "sample", "vae"]
    assert 0 < sum(metrics["timing"].values()) <= metrics["predict_time"] + 0.01
    lines = answer["logs"].splitlines()
    assert lines[-1] == "seed 7"
    assert "sample 12/12" in lines
    assert len(lines) < 40


def test_the_seed_decides_the_sound(server: Server, good: dict[str, Any]) -> None:
    first, second, other, zero, zero_again = (
        server.predict(**good | {"seed": seed})["output"] for seed in (1, 1, 2, 0, 0)
    )
    assert first == second
    assert zero == zero_again
    assert len({first, other, zero}) == 3


def test_without_a_seed_one_is_drawn_and_reported(
    server: Server, good: dict[str, Any], tmp_path: Path
) -> None:
    del good["seed"]
    answers = [server.predict(**good) for _ in range(2)]
    seeds = [answer["metrics"]["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    assert f"seed {seeds[0]}" in answers[0]["logs"]
    with av.open(output_of(answers[0], tmp_path)) as container:
        assert container.metadata["seed"] == str(seeds[0])
    assert server.predict(**good, seed=seeds[0])["output"] == answers[0]["output"]


def test_whole_floats_are_whole_numbers_and_unread_words_are_in_the_log(
    server: Server, good: dict[str, Any]
) -> None:
    floats = {"seed": 1.0, "num_inference_steps": 10.0}
    answer = server.predict(**good | floats, caption="ball " * 200 + "of metal", cot="a ball")
    assert (answer["status"], answer["metrics"]["seed"], answer["metrics"]["steps"]) == ("succeeded", 1, 10)
    assert "note: caption: MetaCLIP reads only the first 75 of 202 words" in answer["logs"]


def test_null_is_the_same_as_left_out(server: Server, good: dict[str, Any]) -> None:
    nothing = dict.fromkeys(("caption", "cot", "cfg_scale", "duration"))
    assert server.predict(**good, **nothing)["output"] == server.predict(**good)["output"]
    metrics = server.predict(video=good["video"], seed=None, num_inference_steps=None)["metrics"]
    assert metrics["steps"] == 24
    assert 0 <= metrics["seed"] < 2**32


def test_an_empty_cot_is_the_caption(server: Server, good: dict[str, Any]) -> None:
    alone, both, other = (
        server.predict(**good | {"caption": "a dog barks", "cot": cot})["output"]
        for cot in ("", "a dog barks", "a cat")
    )
    assert alone == both != other


def test_duration_uses_the_beginning(server: Server, clips: Path, tmp_path: Path) -> None:
    answer = server.predict(video=data_url(clips / SECOND), duration=0.5, num_inference_steps=10)
    assert answer["metrics"]["audio_seconds"] == 0.5
    with av.open(output_of(answer, tmp_path)) as container:
        assert container.duration == pytest.approx(500_000, abs=1000)


@pytest.mark.parametrize("name", [SHORT, 'it\'s a "clip" with ünusual name #1?.mp4'])
def test_a_video_on_the_web(
    server: Server, clips: Path, good: dict[str, Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes((clips / SHORT).read_bytes())
    with contextlib.closing(Loopback(tmp_path)) as web:
        url = f"{web.url}/{urllib.parse.quote(name)}".replace("http", "HTTP")
        answer = server.predict(**good | {"video": url})
    assert answer["output"] == server.predict(**good)["output"]


def test_a_damaged_video_is_used_as_far_as_it_goes(server: Server, tmp_path: Path) -> None:
    whole = render(tmp_path / "whole.mp4", frames=50, container_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    answer = server.predict(video=data_url(cut), num_inference_steps=10)
    assert 0.1 <= answer["metrics"]["audio_seconds"] < 2
    assert re.search(r"note: .*damaged", answer["logs"])


def _tone(folder: Path) -> Path:
    path = folder / "tone.wav"
    with av.open(path, "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=8000)
        frame.rate = 8000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def _text(folder: Path) -> Path:
    (folder / "notes.mp4").write_text("not a video\n" * 20)
    return folder / "notes.mp4"


def _empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def _picture(folder: Path) -> Path:
    return render(
        folder / "picture.png", frames=1, codec="png", pixel_format="rgb24", container_format="image2"
    )


def _without_index(folder: Path) -> Path:
    whole = render(folder / "whole.mp4")
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return folder / "cut.mp4"


def _too_long(folder: Path) -> Path:
    return render(folder / "long.mp4", frames=190, rate=1)


def _too_wide(folder: Path) -> Path:
    return render(folder / "wide.mp4", frames=5, size=(2200, 64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_tone, r"no video stream \(1 audio stream found\); give a file with moving pictures"),
        (_text, r"not a video \(it looks like a text file"),
        (_empty, r"the file is empty \(0 bytes\)"),
        (_picture, r"still picture \(PNG\)"),
        (_without_index, r"damaged \(its index is missing"),
        (_too_long, r"longer than 180 s"),
        (_too_wide, r"pictures of 2200x64 pixels; allowed are"),
    ],
)
def test_a_file_that_is_no_usable_video(
    server: Server, good: dict[str, Any], tmp_path: Path, make: Any, message: str
) -> None:
    answer = server.predict(video=data_url(make(tmp_path)), num_inference_steps=10)
    assert answer["status"] == "failed"
    assert re.search(rf"MediaError: video: .*{message}", answer["error"])
    assert "output" not in answer
    assert_nothing_happened(server, good)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"caption": "x" * 100_000},
            r"InputError: caption has 100,000 characters; at most 10,000 are allowed",
        ),
        ({"cot": "x" * 100_000}, r"InputError: cot has 100,000 characters"),
        ({"seed": -1}, r"InputError: seed -1 is out of range; give a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, r"InputError: seed 4294967296 is out of range"),
        (
            {"video": "/etc/hostname"},
            r"InputError: video '/etc/hostname' is no URL; give an http, https or data",
        ),
        ({"video": "file:///etc/hostname"}, r"is no URL"),
        ({"video": "{web}/nowhere.mp4"}, r"404"),
        ({"video": "{web}/cut/short.mp4"}, r"IncompleteRead"),
        ({"video": "http://127.0.0.1:9/refused.mp4"}, r"Connection refused"),
        ({"video": "data:video/mp4;base64,A"}, r"InputError: video: a damaged data URL"),
    ],
)
def test_inputs_that_fail(
    server: Server, web: Loopback, good: dict[str, Any], inputs: dict[str, Any], message: str
) -> None:
    if "video" in inputs:
        inputs = {"video": inputs["video"].replace("{web}", web.url)}
    answer = server.predict(**good | inputs)
    assert answer["status"] == "failed"
    assert re.search(message, answer["error"])
    assert_nothing_happened(server, good)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"video": None}, 'null is not of type "string"'),
        ({"cfg_scale": 0.5}, "0.5 is less than the minimum of 1.0"),
        ({"cfg_scale": 20.5}, "20.5 is greater than the maximum of 20.0"),
        ({"cfg_scale": "five"}, '"five" is not of types "null", "number"'),
        ({"num_inference_steps": 9}, "9 is less than the minimum of 10"),
        ({"num_inference_steps": 101}, "101 is greater than the maximum of 100"),
        ({"num_inference_steps": 10.5}, '10.5 is not of types "integer", "null"'),
        ({"seed": "1"}, '"1" is not of types "integer", "null"'),
        ({"duration": 0}, "0 is less than the minimum of 0.1"),
        ({"caption": 5}, '5 is not of types "null", "string"'),
    ],
)
def test_inputs_that_are_refused(
    server: Server, good: dict[str, Any], inputs: dict[str, Any], message: str
) -> None:
    server.wait_for("READY")
    status, answer = server.request("POST", "/predictions", {"input": good | inputs})
    assert status == 422
    (detail,) = answer["detail"]
    assert detail["loc"] == ["body", "input", *inputs]
    assert detail["msg"] == message
    assert_nothing_happened(server, good)


def test_a_request_without_a_video(server: Server, good: dict[str, Any]) -> None:
    server.wait_for("READY")
    status, answer = server.request("POST", "/predictions", {"input": {"caption": "rain"}})
    assert status == 422
    assert answer["detail"] == [
        {"loc": ["body", "input", "video"], "msg": "Field required", "type": "value_error.missing"}
    ]
    assert_nothing_happened(server, good)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none(server: Server, good: dict[str, Any], number: str) -> None:
    server.wait_for("READY")
    body = f'{{"input": {{"video": "{good["video"]}", "cfg_scale": {number}}}}}'
    status, _ = server.request("POST", "/predictions", body.encode())
    assert status in (400, 422)
    assert_nothing_happened(server, good)


def assert_nothing_happened(server: Server, good: dict[str, Any]) -> None:
    """The next request works, one output is all there is on the disk, and no traceback in the log."""
    assert server.predict(**good)["status"] == "succeeded"
    assert server.leftovers == ["thinksound.mp4"]
    assert "Traceback" not in server.log.read_text()


def start(server: Server, web: Loopback, clips: Path, name: str) -> str:
    """Begin a request that takes seconds; returns its address once it samples."""
    server.wait_for("READY")
    address = f"/predictions/{name}"
    body = {
        "input": {"video": data_url(clips / LONG), "num_inference_steps": 100},
        "webhook": web.url,
        "webhook_events_filter": ["logs", "completed"],
    }
    status, answer = server.request("PUT", address, body, Prefer="respond-async")
    assert (status, answer["status"]) == (202, "starting")
    while "sample" not in (event := web.received.get(timeout=30))["logs"]:
        assert event["status"] == "processing"
    return address


def cancel(server: Server, web: Loopback, address: str) -> dict[str, Any]:
    """Cancel a request; returns the last that it says."""
    assert server.request("POST", f"{address}/cancel")[0] == 200
    while (event := web.received.get(timeout=30))["status"] == "processing":
        pass
    return event


def test_a_second_request_while_busy(
    server: Server, web: Loopback, clips: Path, good: dict[str, Any]
) -> None:
    address = start(server, web, clips, "busy")
    status, answer = server.request("POST", "/predictions", {"input": good})
    assert status == 409
    assert "busy" in answer["error"]
    assert cancel(server, web, address)["status"] == "canceled"
    assert_nothing_happened(server, good)


def test_a_cancelled_request_leaves_nothing(
    server: Server, web: Loopback, clips: Path, good: dict[str, Any]
) -> None:
    address = start(server, web, clips, "cancelled")
    started = time.monotonic()
    event = cancel(server, web, address)
    assert time.monotonic() - started < 2
    assert event["status"] == "canceled"
    assert "sample 100/100" not in event["logs"]
    assert not event.get("output")
    assert server.leftovers == []
    assert_nothing_happened(server, good)


def test_cancelling_does_not_wait_for_a_slow_download(
    server: Server, web: Loopback, good: dict[str, Any]
) -> None:
    server.wait_for("READY")
    body = {"input": {"video": f"{web.url}/slow/film.mp4"}}
    assert server.request("PUT", "/predictions/slow", body, Prefer="respond-async")[0] == 202
    end = time.monotonic() + 30
    while not server.leftovers and time.monotonic() < end:
        time.sleep(0.05)
    assert server.request("POST", "/predictions/slow/cancel")[0] == 200
    server.wait_for("READY", limit_s=5)
    assert_nothing_happened(server, good)


def test_an_input_for_which_there_is_no_room_fails_alone(server: Server, good: dict[str, Any]) -> None:
    server.wait_for("READY")
    worker = server.worker
    limits = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (500_000, limits[1]))  # like a full disk, for one process
    answer = server.predict(video=f"data:video/mp4;base64,{'A' * 1_000_000}")
    resource.prlimit(worker, resource.RLIMIT_FSIZE, limits)
    assert answer["status"] == "failed"
    assert "InputError: video: no room for it on the disk" in answer["error"]
    assert server.leftovers == []
    assert_nothing_happened(server, good)


def test_a_server_whose_worker_dies_ends_with_an_error(tmp_path: Path, good: dict[str, Any]) -> None:
    """So that what supervises it starts a new one; the client that waits gets an answer before."""
    with contextlib.closing(Server(tmp_path, THINKSOUND_PRESET="tiny", THINKSOUND_PRIVATE_URLS="")) as mortal:
        answer = mortal.predict(video=f"http://127.0.0.1:{mortal.port}/openapi.json")
        assert "leads to 127.0.0.1, which is no public address" in answer["error"]
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(mortal.predict, **good | {"num_inference_steps": 100})
            mortal.wait_for("BUSY")
            os.kill(mortal.worker, signal.SIGKILL)
            answer = waiting.result(30)
            assert (answer["status"], answer["error"]) == ("failed", "Worker crashed")
        assert mortal.process.wait(30) == -signal.SIGKILL
        assert mortal.leftovers == []


def test_out_of_memory_fails_one_request(tmp_path: Path, good: dict[str, Any]) -> None:
    minute = data_url(render(tmp_path / "minute.mp4", frames=60 * 25))  # takes 1 GB beside the weights
    limited = Server(tmp_path, THINKSOUND_PRESET="tiny", **ONE_HEAP)
    with contextlib.closing(limited):
        before = limited.predict(**good)["output"]
        worker = limited.worker
        used = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.prlimit(worker, resource.RLIMIT_AS)
        # Enough for threads and small things: what fails is one of the large tensors.
        resource.prlimit(worker, resource.RLIMIT_AS, (used + 2**28, limits[1]))
        answer = limited.predict(video=minute, num_inference_steps=10)
        resource.prlimit(worker, resource.RLIMIT_AS, limits)
        assert answer["status"] == "failed"
        assert re.search(r"PlacementError: .*(try a shorter duration|give a smaller video)", answer["error"])
        assert limited.predict(**good)["output"] == before
        assert limited.worker == worker


def test_ten_requests_take_no_more_room_than_one(server: Server, clips: Path) -> None:
    inputs = {"video": data_url(clips / SECOND), "num_inference_steps": 10}
    for _ in range(5):
        server.predict(**inputs)
    files, resident = server.leftovers, resident_bytes(server.worker)
    for _ in range(10):
        assert server.predict(**inputs)["status"] == "succeeded"
    assert server.leftovers == files
    assert resident_bytes(server.worker) - resident < 20e6  # the pictures of one request take 5 MB


def test_the_output_is_uploaded_and_the_end_leaves_no_file(
    tmp_path: Path, web: Loopback, good: dict[str, Any], server: Server
) -> None:
    uploading = Server(tmp_path, "--upload-url", f"{web.url}/place/", THINKSOUND_PRESET="tiny")
    with contextlib.closing(uploading):
        for _ in range(2):
            answer = uploading.predict(**good)
            assert answer["output"] == f"{web.url}/place/thinksound.mp4"
            upload = web.received.get(timeout=5)
            assert upload["type"] == "video/mp4"
            sent = f"data:video/mp4;base64,{base64.b64encode(upload['content']).decode()}"
            assert sent == server.predict(**good)["output"]
            assert uploading.leftovers == ["thinksound.mp4"]
    assert uploading.leftovers == []


def test_setup_without_weights_says_what_to_put_where(tmp_path: Path) -> None:
    empty = tmp_path / "weights"
    failing = Server(tmp_path, THINKSOUND_PRESET="thinksound-light", THINKSOUND_WEIGHTS=str(empty))
    with contextlib.closing(failing):
        setup = failing.wait_for("SETUP_FAILED")["setup"]
        assert failing.request("POST", "/predictions", {"input": {"video": "http://127.0.0.1/"}})[0] == 503
    assert setup["status"] == "failed"
    assert f"WeightsError: HF_HUB_OFFLINE is set, and weights are missing in {empty}" in setup["logs"]
    for name in (
        "thinksound_light.ckpt",
        "vae.ckpt",
        "synchformer_state_dict.pth",
        "metaclip-h14",
        "t5-v1_1-xl",
    ):
        assert name in setup["logs"]
    assert not empty.exists()


@pytest.mark.parametrize(
    ("language", "command"),
    [("sh", ["sh", "-ec"]), ("python", [sys.executable, "-c"]), ("js", ["node", "-e"])],
)
def test_documented_requests_work(
    server: Server, clips: Path, tmp_path: Path, language: str, command: list[str]
) -> None:
    if shutil.which(command[0]) is None or (language == "sh" and shutil.which("curl") is None):
        pytest.skip(f"no {command[0]} or curl here")
    page = (ROOT / "docs" / "http.md").read_text()
    (example,) = [
        text for text in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if "/predictions" in text
    ]
    shutil.copy(clips / SECOND, tmp_path / "clip.mp4")
    server.wait_for("READY")
    subprocess.run(
        [*command, example.replace("localhost:5000", f"127.0.0.1:{server.port}")],
        cwd=tmp_path,
        env=os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        check=True,
        timeout=60,
    )
    assert picture_packets(tmp_path / "clip_sound.mp4") == picture_packets(clips / SECOND)
    with av.open(tmp_path / "clip_sound.mp4") as container:
        assert container.metadata["seed"] == "7"
        assert container.metadata["caption"] == "Axe striking wood"
