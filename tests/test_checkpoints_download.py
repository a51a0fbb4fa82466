"""Downloads over real HTTP from a hub on loopback, each in a process of its own.

A process of its own because huggingface_hub reads HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE once, when it
is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub

from thinksound.checkpoints.locate import missing
from thinksound.checkpoints.registry import WEIGHTS

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


def thinksound_hub(**settings: object) -> Hub:
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
