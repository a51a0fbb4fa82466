"""Downloads over real HTTP from a hub on loopback, each in a process of its own.

A process of its own because huggingface_hub reads HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE once, when it
is imported.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support.hub_server import COMMIT, Hub

from thinksound.checkpoints.cache import cached_files
from thinksound.checkpoints.download import download
from thinksound.checkpoints.locate import missing, shards_of
from thinksound.checkpoints.registry import WEIGHTS
from thinksound.commands.weights import weight_lines
from thinksound.errors import WeightsError

pytestmark = pytest.mark.slow

THINKSOUND = "FunAudioLLM/ThinkSound"
CHECKPOINT = bytes(range(256)) * 4096  # 1 MiB
LARGE_CHECKPOINT = CHECKPOINT * 25
PART = 10 << 20

SCRIPT = """
import json, os, sys
from pathlib import Path
from thinksound.checkpoints.download import download
from thinksound.errors import WeightsError
if limit := os.environ.get("LARGEST_FILE"):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if free := os.environ.get("FREE_BYTES"):
    import shutil
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(int(free), 0, int(free))
seen = []
try:
    paths = download(Path(sys.argv[1]), sys.argv[2:], lambda *row: seen.append(row))
    print(json.dumps({"paths": [str(path) for path in paths], "progress": seen}))
except WeightsError as error:
    print(json.dumps({"error": str(error), "progress": seen}))
assert "torch" not in sys.modules
"""


def run(hub_url: str, weights: Path, *keys: str, **environment: str) -> dict:
    """What `download` returned or raised in a fresh process, and the progress it reported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(weights.parent / "hf_home"), **environment}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(weights), *keys],
        env=inherited | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def thinksound_hub(**settings: Any) -> Hub:
    files = {"vae.ckpt": CHECKPOINT, "thinksound_light.ckpt": b"light" * 1000, "README.md": b"# card"}
    return Hub({THINKSOUND: files}, **settings)


def left_behind(weights: Path) -> list[str]:
    """Every file below the weights folder except the checksums and what waits to be resumed."""
    files = (path.relative_to(weights) for path in weights.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if path.parts[0] not in (".download", "checksums.json"))


def test_files_arrive_whole_under_their_published_names_with_progress_and_a_record(weights: Path) -> None:
    with thinksound_hub() as hub:
        outcome = run(hub.url, weights, "vae", "thinksound_light")
    assert (weights / "vae.ckpt").read_bytes() == CHECKPOINT
    assert left_behind(weights) == ["thinksound_light.ckpt", "vae.ckpt"]
    assert not (weights / ".download").exists()
    assert set(json.loads((weights / "checksums.json").read_text())) == {"vae.ckpt", "thinksound_light.ckpt"}
    assert outcome["paths"] == [str(weights / "vae.ckpt"), str(weights / "thinksound_light.ckpt")]
    vae = [row for row in outcome["progress"] if row[0] == "vae.ckpt"]
    assert vae[-1] == ["vae.ckpt", len(CHECKPOINT), len(CHECKPOINT)]
    assert not list((weights.parent).glob("hf_home/hub/models--*")), "a second copy in the hub's cache"


def test_nothing_is_asked_of_the_hub_when_everything_is_here(weights: Path) -> None:
    weights.mkdir()
    (weights / "vae.ckpt").write_bytes(b"put here by hand")
    with thinksound_hub() as hub:
        assert run(hub.url, weights, "vae")["paths"] == []
    assert hub.requests == []
    assert (weights / "vae.ckpt").read_bytes() == b"put here by hand"


def test_of_a_folder_one_copy_of_the_weights_and_the_tokenizer_are_fetched(weights: Path) -> None:
    wanted = {
        "config.json": b"{}",
        "spiece.model": b"pieces" * 40,
        "tokenizer_config.json": b"{ }",
        "pytorch_model.bin.index.json": json.dumps(
            {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
        ).encode(),
        "pytorch_model-00001-of-00002.bin": b"one" * 100,
        "pytorch_model-00002-of-00002.bin": b"two" * 100,
    }
    not_wanted = {
        "tf_model.h5": b"t",
        "t5_model.h5": b"t",
        "flax_model.msgpack": b"f",
        "onnx/model.onnx": b"o",
        "README.md": b"r",
    }
    with Hub({"google/t5-v1_1-xl": wanted | not_wanted}) as hub:
        outcome = run(hub.url, weights, "t5")
    # Two folders have a config.json: a name alone would show the second one's progress as finished.
    assert {row[0] for row in outcome["progress"]} == {f"t5-v1_1-xl/{name}" for name in wanted}
    folder = weights / "t5-v1_1-xl"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert missing(weights, ["t5"]) == []
    assert sorted(hub.fetched()) == sorted(wanted)


def test_safetensors_are_taken_instead_of_the_pickled_copy(weights: Path) -> None:
    revision = WEIGHTS["metaclip"].revision
    files = {name: name.encode() for name in ("config.json", "vocab.json", "merges.txt")}
    files |= {"model.safetensors": b"s" * 99, "pytorch_model.bin": b"p", "metaclip_h14_fullcc2.5b.bin": b"p"}
    with Hub({"facebook/metaclip-h14-fullcc2.5b": files}) as hub:
        run(hub.url, weights, "metaclip")
    assert sorted(hub.fetched()) == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    assert f"/api/models/facebook/metaclip-h14-fullcc2.5b/revision/{revision}" in {
        request.path for request in hub.requests
    }


def test_a_folder_half_filled_by_hand_is_completed_without_fetching_what_is_right(weights: Path) -> None:
    files = {"config.json": b"{}", "spiece.model": b"pieces", "pytorch_model.bin": b"w" * 500}
    folder = weights / "t5-v1_1-xl"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(files["config.json"])
    (folder / "spiece.model").write_bytes(b"broken")  # same length
    with Hub({"google/t5-v1_1-xl": files}) as hub:
        run(hub.url, weights, "t5")
    assert sorted(hub.fetched()) == ["pytorch_model.bin", "spiece.model"]
    assert (folder / "spiece.model").read_bytes() == b"pieces"


def test_a_cut_connection_is_resumed_within_the_same_call(weights: Path) -> None:
    files = {"vae.ckpt": LARGE_CHECKPOINT}
    with Hub({THINKSOUND: files}, cut_after={"vae.ckpt": [2 * PART + 5]}) as hub:
        run(hub.url, weights, "vae")
    assert (weights / "vae.ckpt").read_bytes() == LARGE_CHECKPOINT
    ranges = [request.byte_range for request in hub.requests if request.path.startswith("/blobs/")]
    assert ranges == [None, f"bytes={2 * PART + 5}-"]


def test_what_arrived_before_the_hub_went_away_is_not_fetched_again(weights: Path) -> None:
    files = {"vae.ckpt": LARGE_CHECKPOINT}
    # Five attempts follow; any byte would make the count start again.
    with Hub({THINKSOUND: files}, cut_after={"vae.ckpt": [PART + 5, *[0] * 5]}) as hub:
        outcome = run(hub.url, weights, "vae")
        assert "vae.ckpt: the connection to" in outcome["error"]
        assert "run the same command again to go on" in outcome["error"]
        assert left_behind(weights) == []
        hub.requests.clear()
        outcome = run(hub.url, weights, "vae")
    assert (weights / "vae.ckpt").read_bytes() == LARGE_CHECKPOINT
    ranges = [request.byte_range for request in hub.requests if request.path.startswith("/blobs/")]
    assert ranges == [f"bytes={PART + 5}-"]
    assert outcome["progress"][0][1] > PART
    assert not (weights / ".download").exists()


def test_content_that_was_not_announced_is_deleted_and_named(weights: Path) -> None:
    wrong = bytes(len(CHECKPOINT))
    with thinksound_hub(sent_instead={"vae.ckpt": wrong}) as hub:
        outcome = run(hub.url, weights, "vae")
        assert "vae.ckpt: what http://127.0.0.1" in outcome["error"]
        assert "not what it announced" in outcome["error"]
        assert [path for path in weights.rglob("*") if path.suffix in (".ckpt", ".partial")] == []
        hub.sent_instead.clear()
        run(hub.url, weights, "vae")
    assert (weights / "vae.ckpt").read_bytes() == CHECKPOINT


def test_small_files_are_verified_too(weights: Path) -> None:
    files = {"config.json": b"{}", "spiece.model": b"pieces", "pytorch_model.bin": b"w" * 500}
    with Hub({"google/t5-v1_1-xl": files}, sent_instead={"config.json": b"[]"}) as hub:
        outcome = run(hub.url, weights, "t5")
    assert "config.json: what http://127.0.0.1" in outcome["error"]


def test_a_file_shorter_than_announced_never_gets_its_name(weights: Path) -> None:
    with thinksound_hub(sent_instead={"vae.ckpt": CHECKPOINT[:1000]}) as hub:
        outcome = run(hub.url, weights, "vae")
    assert outcome["error"].startswith("vae.ckpt: ")
    assert left_behind(weights) == []


def test_offline_says_which_files_to_put_where_and_asks_nothing(weights: Path) -> None:
    with thinksound_hub() as hub:
        outcome = run(hub.url, weights, "vae", "t5", HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert f"weights are missing in {weights}" in outcome["error"]
    assert "  vae.ckpt, from FunAudioLLM/ThinkSound" in outcome["error"]
    assert "  t5-v1_1-xl/: config.json, model.safetensors or" in outcome["error"]
    assert not weights.exists()


def test_a_repository_without_the_file_is_named(weights: Path) -> None:
    with Hub({THINKSOUND: {"README.md": b""}}) as hub:
        outcome = run(hub.url, weights, "vae")
    assert f"{THINKSOUND} at {hub.url} has no file vae.ckpt" in outcome["error"]


def test_an_unknown_repository_is_named(weights: Path) -> None:
    with Hub({}) as hub:
        outcome = run(hub.url, weights, "vae")
    assert f"{THINKSOUND}: not found on {hub.url}" in outcome["error"]


def test_an_unknown_revision_is_named(weights: Path) -> None:
    with Hub({"facebook/metaclip-h14-fullcc2.5b": {}}, revisions=()) as hub:
        outcome = run(hub.url, weights, "metaclip")
    assert f"{WEIGHTS['metaclip'].revision} not found on {hub.url}" in outcome["error"]


def test_a_closed_repository_opens_with_the_token(weights: Path) -> None:
    with thinksound_hub(token="hf_secret") as hub:
        refused = run(hub.url, weights, "vae")
        assert "not open to you; check HF_ENDPOINT and HF_TOKEN" in refused["error"]
        run(hub.url, weights, "vae", HF_TOKEN="hf_secret")
    assert (weights / "vae.ckpt").read_bytes() == CHECKPOINT
    assert any(request.authorization == "Bearer hf_secret" for request in hub.requests)


def test_missing_agreement_names_the_page_to_agree_on(weights: Path) -> None:
    with thinksound_hub(gated=True) as hub:
        outcome = run(hub.url, weights, "vae")
    assert f"agree on {hub.url}/{THINKSOUND}, then set HF_TOKEN" in outcome["error"]


def test_a_hub_that_does_not_answer_is_named(weights: Path) -> None:
    with thinksound_hub() as hub:
        url = hub.url
    outcome = run(url, weights, "vae")
    assert f"the connection to {url} failed" in outcome["error"]


def test_too_little_space_is_noticed_before_anything_is_fetched(weights: Path) -> None:
    with thinksound_hub(announced_size={"vae.ckpt": 2_000_000_000}) as hub:
        outcome = run(hub.url, weights, "vae", FREE_BYTES="1500000000")
    assert "2.00 GB are needed and 1.50 GB are free" in outcome["error"]
    assert "make room or choose another folder" in outcome["error"]
    assert hub.fetched() == []


def test_a_disk_that_takes_no_more_is_one_message_and_the_rest_follows_later(weights: Path) -> None:
    pytest.importorskip("resource")
    with Hub({THINKSOUND: {"vae.ckpt": LARGE_CHECKPOINT}}) as hub:
        outcome = run(hub.url, weights, "vae", LARGEST_FILE=str(PART))
        assert outcome["error"] == "vae.ckpt: File too large; run the same command again"
        assert left_behind(weights) == []
        run(hub.url, weights, "vae")
    assert (weights / "vae.ckpt").read_bytes() == LARGE_CHECKPOINT


def test_bundled_files_are_never_looked_for_on_the_hub(tmp_path: Path) -> None:
    from thinksound.checkpoints import download, registry

    assert all(not file.bundled or file.repository is None for file in registry.WEIGHTS.values())
    assert download.download(tmp_path, []) == []


# What follows runs in this process, with huggingface_hub's settings replaced: a process per case is slow.

T5 = "google/t5-v1_1-xl"
T5_FILES = {"config.json": b"{}", "spiece.model": b"pieces", "pytorch_model.bin": b"w" * 500}
Answer = Callable[[BaseHTTPRequestHandler], bool]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    def use(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)

    return use


def refusal(weights: Path, *keys: str) -> str:
    with pytest.raises(WeightsError) as caught:
        download(weights, keys)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


def answer(body: bytes, status: int = 200, **headers: str) -> Answer:
    """The same for every question."""

    def send(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)
        request.close_connection = True
        return True

    return send


def description(**fields: object) -> Answer:
    """A description of the VAE's repository with some fields replaced; None leaves one out."""
    sibling: dict[str, Any] = {
        "rfilename": "vae.ckpt",
        "size": 4,
        "blobId": "0" * 40,
        "lfs": {"sha256": "0" * 64},
    }
    document: dict[str, Any] = {"sha": COMMIT, "siblings": [sibling]}
    for name, value in fields.items():
        place = document if name in document else sibling
        place[name] = value
    return answer(json.dumps(document).encode())


def silent(request: BaseHTTPRequestHandler) -> bool:
    time.sleep(3)
    request.close_connection = True
    return True


def trickle(request: BaseHTTPRequestHandler) -> bool:
    """Headers without end, a few bytes before each time-out of the socket."""
    request.send_response(200)
    request.flush_headers()
    for _ in range(30):
        try:
            request.wfile.write(b"X-Wait: 1\r\n")
        except OSError:
            break
        time.sleep(0.1)
    request.close_connection = True
    return True


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (
            answer(b"<html>please log in</html>", Content_Type="text/html"),
            "does not answer as a Hugging Face hub",
        ),
        (answer(b"[]"), "no commit or no list of files"),
        (answer(b"null"), "no commit or no list of files"),
        (answer(b"7"), "no commit or no list of files"),
        (answer(b""), "does not answer as a Hugging Face hub"),
        (answer(b"[" * 200_000), "does not answer as a Hugging Face hub"),
        (answer(b"\xff\xfe{}\x1b[2J\n"), "does not answer as a Hugging Face hub"),
        (answer(gzip.compress(bytes(10**8)), Content_Encoding="gzip"), "which was not asked for"),
        (answer(bytes(17 << 20)), "is longer than 16,777,216 bytes"),
        (answer(b"", 429, Retry_After="999999"), "answered 429"),
        (answer(b"", 500), "it answered 500"),
        (answer(b"", 404), "answered 404"),
        (answer(b"", 302, Location="/again"), "the connection to"),
        (answer(b"", 302, Location="ftp://127.0.0.1/"), "the connection to"),
        (answer(b"", 302, Location="http://[::1"), "the connection to"),
        (description(siblings={"vae.ckpt": 1}), "no commit or no list of files"),
        (description(siblings=[["vae.ckpt"]]), "its list of files holds something else"),
        (description(siblings=[]), "has no file vae.ckpt"),
        (description(sha=None), "no commit"),
        (description(sha="../../api"), "no commit"),
        (description(size="12"), "does not tell size and hash"),
        (description(size=-1), "does not tell size and hash"),
        (description(size=float("nan")), "does not tell size and hash"),
        (description(size=True), "does not tell size and hash"),
        (description(size=10**18), "announces 1,000,000,000,000,000,000 bytes"),
        (description(lfs=[]), "does not tell size and hash"),
        (description(lfs={"sha256": "../../outside"}), "does not tell size and hash"),
        (description(blobId=7), "does not tell size and hash"),
        (description(lfs=None, blobId="/tmp/outside"), "does not tell size and hash"),
        (silent, "the connection to"),
        (trickle, "no complete answer in"),
    ],
)
def test_what_is_no_answer_of_a_hub_is_one_line_with_its_address(
    weights: Path, use: Callable[[str], None], hostile: Answer, said: str
) -> None:
    with Hub({}, instead=hostile) as hub:
        use(hub.url)
        message = refusal(weights, "vae")
        assert said in message and hub.url in message
        assert all(request.path.startswith(("/api/models/", "/again")) for request in hub.requests)
    assert left_behind(weights) == []


@pytest.mark.parametrize("address", ["", "not a url", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(weights: Path, use: Callable[[str], None], address: str) -> None:
    use(address)
    assert f"HF_ENDPOINT={address!r} is not the address of a hub" in refusal(weights, "vae")


def test_an_address_that_huggingface_hub_cannot_read_is_one_line(weights: Path) -> None:
    script = "import sys; from thinksound.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "weights", "download", "--weights", str(weights)],
        env=os.environ | {"HF_ENDPOINT": "http://[::1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "HF_ENDPOINT" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model-1/../../../outside-of-2.bin",
        "../outside",
        "/tmp/outside",
        "..\\outside",
        "C:outside",
        "pytorch_model-1\0-of-2.bin",
        "pytorch_model-\x1b[2J-of-2.bin",
        "x" * 300,
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(
    weights: Path, use: Callable[[str], None], name: str
) -> None:
    index = {"pytorch_model.bin.index.json": b'{"weight_map": {}}', name: b"outside"}
    with Hub({T5: T5_FILES | index}) as hub:
        use(hub.url)
        assert "lists a file that cannot be stored safely" in refusal(weights, "t5")
        assert hub.fetched() == []
    assert not (weights.parent / "outside").exists()


def test_a_shard_with_a_name_of_its_own_is_not_one(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../outside", "model-1-of-2/../x.safetensors", "model-*-of-1.safetensors", 7):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WeightsError, match=r"which is no shard|no weight_map of file names"):
            shards_of(index)
    index.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert shards_of(index) == {"model-00001-of-00001.safetensors"}


def test_a_server_that_sends_without_end_is_cut_off_at_the_announced_size(
    weights: Path, use: Callable[[str], None]
) -> None:
    sent = 0

    def endless(request: BaseHTTPRequestHandler) -> bool:
        nonlocal sent
        if "/blobs/" not in request.path:
            return False
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        try:
            while sent < 200 << 20:
                sent += request.wfile.write(bytes(1 << 16))
        except OSError:
            pass
        return True

    with thinksound_hub(instead=endless) as hub:
        use(hub.url)
        assert "sends more than the 1,048,576 bytes that it announced" in refusal(weights, "vae")
    assert sent < 100 << 20
    assert list(weights.rglob("*.partial")) == []


def test_a_file_of_which_next_to_nothing_arrives_ends_with_what_is_here_kept(
    weights: Path, use: Callable[[str], None]
) -> None:
    def slow(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in request.path:
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(len(CHECKPOINT)))
        request.end_headers()
        request.close_connection = True
        try:
            for _ in range(100):
                request.wfile.write(CHECKPOINT[:1])
                time.sleep(0.1)
        except OSError:
            pass
        return True

    with thinksound_hub(instead=slow) as hub:
        use(hub.url)
        began = time.monotonic()
        message = refusal(weights, "vae")
        assert time.monotonic() - began < 8
    assert f"vae.ckpt: {hub.url} sent" in message and "bytes in the last 2 s" in message
    (partial,) = weights.rglob("*.partial")
    assert partial.stat().st_size >= 10


def test_files_arrive_at_the_same_time_and_a_failing_one_stops_the_others(
    weights: Path, use: Callable[[str], None]
) -> None:
    both = threading.Barrier(2, timeout=10)
    refused = True

    def together(request: BaseHTTPRequestHandler) -> bool:
        if request.command == "GET" and "/blobs/" in request.path:
            both.wait()  # neither is answered before the other is asked for
            if refused and request.path.endswith("thinksound_light.ckpt"):
                return answer(b"", 403)(request)
        return False

    # Of the same content: each needs a partial file of its own.
    files = {"vae.ckpt": CHECKPOINT, "thinksound_light.ckpt": CHECKPOINT}
    with Hub({THINKSOUND: files}, cut_after={"vae.ckpt": [1000]}, instead=together) as hub:
        use(hub.url)
        assert "answered 403 for thinksound_light.ckpt" in refusal(weights, "vae", "thinksound_light")
        refused = False
        seen: list[tuple[str, int, int]] = []
        main = threading.get_ident()
        callers = set()

        def progress(name: str, done: int, total: int) -> None:
            callers.add(threading.get_ident())
            seen.append((name, done, total))

        download(weights, ["vae", "thinksound_light"], progress)
    assert callers == {main}
    for name in ("vae.ckpt", "thinksound_light.ckpt"):
        rows = [row for row in seen if row[0] == name]
        assert rows[-1][1] == rows[-1][2] == (weights / name).stat().st_size
        assert [row[1] for row in rows] == sorted({row[1] for row in rows})


def test_a_killed_download_goes_on_where_it_was(weights: Path) -> None:
    waiting = threading.Event()

    def stop_halfway(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in request.path or waiting.is_set():
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(len(CHECKPOINT)))
        request.end_headers()
        request.wfile.write(CHECKPOINT[:500_000])
        waiting.set()
        time.sleep(5)
        request.close_connection = True
        return True

    with thinksound_hub(instead=stop_halfway) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(weights.parent / "home")}
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(weights), "vae"], env=os.environ | environment
        )
        assert waiting.wait(60)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not any(
            partial.stat().st_size > 400_000 for partial in weights.rglob("*.partial")
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (partial,) = weights.rglob("*.partial")
        arrived = partial.stat().st_size
        assert arrived > 400_000
        hub.requests.clear()
        run(hub.url, weights, "vae")
        ranges = [request.byte_range for request in hub.requests if request.path.startswith("/blobs/")]
    assert ranges == [f"bytes={arrived}-"]
    assert (weights / "vae.ckpt").read_bytes() == CHECKPOINT


def test_one_of_several_processes_fetches_and_the_others_find_it_done(weights: Path) -> None:
    def slow(request: BaseHTTPRequestHandler) -> bool:
        if request.path.startswith("/blobs/"):
            time.sleep(3)  # the others come to wait for the folder
        return False

    with thinksound_hub(instead=slow) as hub, ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: run(hub.url, weights, "vae"), range(3)))
        assert [each.get("error") for each in done] == [None] * 3
        assert hub.fetched() == ["vae.ckpt"]
    assert not (weights / ".download").exists()


def test_a_proxy_or_a_place_that_cannot_be_used_is_one_line(
    weights: Path, use: Callable[[str], None]
) -> None:
    with thinksound_hub() as hub:
        said = run(hub.url, weights, "vae", ALL_PROXY="::::")["error"]
        assert "check HTTPS_PROXY" in said and "\n" not in said
        (weights / "vae.ckpt").mkdir(parents=True)
        use(hub.url)
        assert f"{weights / 'vae.ckpt'}: cannot be written" in refusal(weights, "vae")


def fill_cache(home: Path, repository: str, files: dict[str, bytes], ref: str | None = "main") -> Path:
    """The cache of huggingface_hub after a download by another program; returns the snapshot."""
    folder = home / ("models--" + repository.replace("/", "--"))
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    if ref is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / ref).write_text(COMMIT)
    for name, content in files.items():
        large = name.endswith((".bin", ".ckpt", ".model"))
        kind = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
        blob = folder / "blobs" / kind.hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_what_the_cache_of_huggingface_hub_holds_is_linked_without_a_network(
    weights: Path,
    use: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    use("http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = fill_cache(tmp_path / "hub", T5, T5_FILES | {"tf_model.h5": b"t"})
    fill_cache(tmp_path / "hub", THINKSOUND, {"vae.ckpt": CHECKPOINT})
    assert set(cached_files(WEIGHTS["t5"])) == set(T5_FILES)
    lines = weight_lines(weights, ["thinksound-light"])
    assert f"cached   {snapshot}  (`thinksound weights download` links it)" in lines
    new = download(weights, ["t5", "vae"])
    assert (
        "vae.ckpt from" in caplog.text
        and "is not the file that FunAudioLLM/ThinkSound published" in caplog.text
    )
    assert sorted(path.name for path in new) == sorted([*T5_FILES, "vae.ckpt"])
    assert {path.name: path.read_bytes() for path in (weights / "t5-v1_1-xl").iterdir()} == T5_FILES
    assert (weights / "t5-v1_1-xl" / "pytorch_model.bin").samefile(snapshot / "pytorch_model.bin")
    assert set(json.loads((weights / "checksums.json").read_text())) == {
        "vae.ckpt",
        *(f"t5-v1_1-xl/{name}" for name in T5_FILES),
    }
    assert missing(weights, ["t5", "vae"]) == []


def test_a_cached_folder_that_is_incomplete_or_damaged_is_not_taken_for_whole(
    weights: Path, use: Callable[[str], None], tmp_path: Path
) -> None:
    snapshot = fill_cache(tmp_path / "hub", T5, T5_FILES)
    (snapshot / "spiece.model").resolve().unlink()  # its link stays
    fill_cache(tmp_path / "hub", THINKSOUND, {"vae.ckpt": CHECKPOINT})
    vae = cached_files(WEIGHTS["vae"])
    use("http://127.0.0.1:9")
    assert cached_files(WEIGHTS["t5"]) == {} and vae == {}
    (damaged,) = cached_files(WEIGHTS["vae"]).values()
    damaged.write_bytes(bytes(len(CHECKPOINT)))
    with Hub({T5: T5_FILES, THINKSOUND: {"vae.ckpt": CHECKPOINT}}) as hub:
        use(hub.url)
        download(weights, ["t5", "vae"])
        # The one that the cache still holds is linked, although the snapshot as a whole is not complete.
        assert sorted(hub.fetched()) == ["spiece.model", "vae.ckpt"]
    assert (weights / "vae.ckpt").read_bytes() == CHECKPOINT


def test_another_revision_in_the_cache_is_compared_with_what_the_hub_announces(
    weights: Path, use: Callable[[str], None], tmp_path: Path
) -> None:
    fill_cache(tmp_path / "hub", T5, T5_FILES | {"pytorch_model.bin": b"older"})
    use("http://127.0.0.1:9")
    assert "HF_HUB_OFFLINE=1 uses it" in refusal(weights, "t5")
    with Hub({T5: T5_FILES}) as hub:
        use(hub.url)
        download(weights, ["t5"])
        assert hub.fetched() == ["pytorch_model.bin"]
    assert {path.name: path.read_bytes() for path in (weights / "t5-v1_1-xl").iterdir()} == T5_FILES


def test_a_mirror_with_commits_of_its_own_gives_its_main_with_a_warning(
    weights: Path, use: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Hub({T5: T5_FILES}, revisions=()) as hub:
        use(hub.url)
        download(weights, ["t5"])
    assert f"{WEIGHTS['t5'].revision} not found on {hub.url}; taken from its main instead" in caplog.text
    assert missing(weights, ["t5"]) == []


def test_the_content_comes_by_xet_where_the_hub_offers_it_and_is_resumed(
    weights: Path, use: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xet = pytest.importorskip("hf_xet")
    storage = f"local://{tmp_path / 'storage'}"  # hf_xet's own storage in a folder
    commit = xet.XetSession().new_upload_commit(endpoint=storage)
    upload = commit.start_upload_bytes(CHECKPOINT)
    commit.wait_to_finish()
    file_hash = upload.result().xet_info.hash
    tokens = []

    def offer(request: BaseHTTPRequestHandler) -> bool:
        if request.path == "/token":
            tokens.append(request.path)
            headers = {
                "X-Xet-Cas-Url": storage,
                "X-Xet-Access-Token": "t",
                "X-Xet-Token-Expiration": "9" * 10,
            }
            return answer(b"", 200, **headers)(request)
        if "/resolve/" in request.path:
            headers = {"X-Xet-Hash": file_hash, "X-Xet-Refresh-Route": f"{hub.url}/token"}
            return answer(b"", 302, Location=f"/blobs/{THINKSOUND}/vae.ckpt", **headers)(request)
        return False

    partial = weights / ".download" / f"{hashlib.sha256(CHECKPOINT).hexdigest()}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CHECKPOINT[:300_000])
    with thinksound_hub(
        instead=offer, sent_instead={"vae.ckpt": CHECKPOINT[:300_000] + bytes(748_576)}
    ) as hub:
        use(hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 20)
        seen: list[tuple[str, int, int]] = []
        download(weights, ["vae"], lambda *row: seen.append(row))  # by HTTP it would be other bytes
    assert tokens == ["/token"]
    assert (weights / "vae.ckpt").read_bytes() == CHECKPOINT
    assert seen[0][1] >= 300_000


def test_the_rest_comes_by_http_when_xet_does_not_work(
    weights: Path, use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")

    def offer(request: BaseHTTPRequestHandler) -> bool:
        if "/resolve/" not in request.path:
            return False
        headers = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{hub.url}/token"}  # which is not there
        return answer(b"", 302, Location=f"/blobs/{THINKSOUND}/vae.ckpt", **headers)(request)

    with thinksound_hub(instead=offer) as hub:
        use(hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 20)  # importing Xet takes its time
        download(weights, ["vae"])
    assert (weights / "vae.ckpt").read_bytes() == CHECKPOINT
