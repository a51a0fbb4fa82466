"""Hashes: recorded at first use, enforced afterwards, accepted only when asked."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support import networks, published
from support.paths import WEIGHTS
from support.published import assert_holds, load_network, overwrite, tensors_of

from thinksound.checkpoints import checksums
from thinksound.checkpoints.registry import default_weights_dir
from thinksound.cli import main
from thinksound.errors import WeightsError


def test_a_file_is_recorded_when_it_first_loads_and_not_hashed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = published.copies(tmp_path, "vae")
    load_network(folder, "vae")
    (name, record), *others = json.loads((folder / checksums.TABLE).read_text()).items()
    assert name == "vae.ckpt" and not others
    assert record["sha256"] == checksums.file_sha256(folder / "vae.ckpt")
    before = (folder / checksums.TABLE).stat()
    load_network(folder, "vae")
    assert (folder / checksums.TABLE).stat().st_ino == before.st_ino, "written again"


def test_a_file_changed_after_first_use_is_refused_until_it_is_accepted(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae")
    load_network(folder, "vae")
    tensors = published.vae_tensors()
    next(iter(tensors.values())).add_(1)
    published.save({"state_dict": tensors}, folder / "vae.ckpt")
    with pytest.raises(WeightsError, match=r"vae\.ckpt: changed since first use .* verify --accept"):
        load_network(folder, "vae")
    assert [row.status for row in checksums.verify(folder) if row.path.name == "vae.ckpt"] == ["changed"]
    with pytest.raises(WeightsError, match="changed since first use"):
        load_network(folder, "vae")
    rows = checksums.verify(folder, accept=True)
    assert [row.status for row in rows if row.path.name == "vae.ckpt"] == ["accepted"]
    assert torch.equal(
        next(iter(load_network(folder, "vae").state_dict().values())), next(iter(tensors.values()))
    )


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "synchformer")
    load_network(folder, "synchformer")
    path = folder / "synchformer_state_dict.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    overwrite(path, bytes(content))
    with pytest.raises(WeightsError, match="changed since first use"):
        load_network(folder, "synchformer")


def test_configuration_and_tokenizer_of_a_folder_are_watched_too(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "t5")
    load_network(folder, "t5")
    config = folder / "t5-v1_1-xl" / "config.json"
    overwrite(config, config.read_bytes() + b"\n")
    with pytest.raises(WeightsError, match=r"config\.json: changed since first use"):
        load_network(folder, "t5")


def test_a_touched_or_copied_file_with_the_same_bytes_is_the_same_file(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae")
    load_network(folder, "vae")
    overwrite(folder / "vae.ckpt", (folder / "vae.ckpt").read_bytes())
    load_network(folder, "vae")
    assert json.loads((folder / checksums.TABLE).read_text())["vae.ckpt"]["mtime_ns"] == 1


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions do not bind the administrator, as whom containers run their tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A weights folder with the VAE that every user can reach (those of pytest are private)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copyfile(published.originals() / "vae.ckpt", folder / "vae.ckpt")
        yield folder
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_written_works_without_a_record(
    open_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "thinksound")
    open_folder.chmod(0o555)
    with without_privileges():
        assert_holds(load_network(open_folder, "vae"), tensors_of("vae"))
    assert [path.name for path in open_folder.iterdir()] == ["vae.ckpt"]
    assert f"{open_folder} is read-only: checksums are not recorded" in caplog.text


def test_a_record_that_cannot_be_renewed_is_no_obstacle(
    open_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "thinksound")
    load_network(open_folder, "vae")
    overwrite(open_folder / "vae.ckpt", (open_folder / "vae.ckpt").read_bytes())
    open_folder.chmod(0o555)
    with without_privileges():
        load_network(open_folder, "vae")
    assert "vae.ckpt: checksum not recorded (Permission denied)" in caplog.text


def test_a_file_that_cannot_be_read_is_named(open_folder: Path) -> None:
    (open_folder / "vae.ckpt").chmod(0o000)
    with (
        without_privileges(),
        pytest.raises(WeightsError, match=r"vae\.ckpt: cannot be read \(Permission denied\)"),
    ):
        load_network(open_folder, "vae")
    open_folder.chmod(0o000)
    with (
        without_privileges(),
        pytest.raises(WeightsError, match=r"vae\.ckpt: cannot be read \(Permission denied\)"),
    ):
        load_network(open_folder, "vae")


TABLES = (
    *("", "{", "[]", "[1]", "3", "null", '{"vae.ckpt": 1}', '{"vae.ckpt": {"sha256": ""}}', "\ufeff{}"),
    *("[" * 200_000, '{"a":' * 200_000, '{"vae.ckpt": NaN}', "1" * 5000, " " * (1 << 23)),
    '{"vae.ckpt": {"sha256": [], "size": 1, "mtime_ns": 1, "ctime_ns": 1}}',
    '{"vae.ckpt": {"sha256": "", "size": "1", "mtime_ns": 1, "ctime_ns": 1}}',
    '{"vae.ckpt": {"sha256": "", "size": 1, "mtime_ns": 1, "ctime_ns": 1, "more": 1}}',
)


def test_a_damaged_table_says_what_to_do(tmp_path: Path) -> None:
    folder = published.copies(tmp_path, "vae")
    for content in (*(table.encode() for table in TABLES), b"\xff\xfe{\0}\0"):
        (folder / checksums.TABLE).write_bytes(content)
        with pytest.raises(WeightsError, match=r"checksums\.json: cannot be read .*; delete it"):
            load_network(folder, "vae")


def test_a_damaged_table_of_bundled_files_is_named(tmp_path: Path) -> None:
    shutil.copytree(default_bundled(), tmp_path / "tiny")
    for content in (*TABLES, '{"vae.safetensors": 1}'):
        (tmp_path / "tiny" / checksums.TABLE).write_text(content)
        with pytest.raises(
            WeightsError, match=r"checksums\.json: cannot be read .*; copy or export it again"
        ):
            networks.load(tmp_path, "vae")


def test_bundled_files_are_held_to_their_committed_table(tmp_path: Path) -> None:
    shutil.copytree(default_bundled(), tmp_path / "tiny")
    rows = {row.path: row.status for row in checksums.verify(tmp_path)}
    assert set(rows.values()) == {"ok"}
    path = tmp_path / "tiny" / "vae.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"vae\.safetensors: not the file that comes with this project"):
        networks.load(tmp_path, "vae")
    rows = {row.path: row.status for row in checksums.verify(tmp_path, accept=True)}
    assert rows[path] == "changed", "a bundled file must not be acceptable"
    assert not (tmp_path / checksums.TABLE).exists()


def test_a_folder_that_was_named_is_used_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the bundled networks would be used, and a fine-tune be taken for tested."""
    monkeypatch.delenv("THINKSOUND_WEIGHTS", raising=False)

    def load(folder: Path) -> None:
        networks.load(folder, "vae")

    absent, empty, own = tmp_path / "absent", tmp_path / "empty", tmp_path / "own"
    empty.mkdir()
    (own / "tiny").mkdir(parents=True)
    load(default_weights_dir())
    with pytest.raises(WeightsError, match=r"absent \(no such folder\):\n  tiny/vae.* comes with"):
        load(absent)
    for folder in (empty, own):
        with pytest.raises(WeightsError, match=r"missing in .*:\n  tiny/vae[^\n]*\n.* leave out --weights"):
            load(folder)
    # The variable is where the large presets lie, so an existing folder without bundled files is no mistake.
    monkeypatch.setenv("THINKSOUND_WEIGHTS", str(empty))
    load(empty)
    for folder in (absent, own):
        monkeypatch.setenv("THINKSOUND_WEIGHTS", str(folder))
        with pytest.raises(WeightsError, match="leave out --weights and THINKSOUND_WEIGHTS, or copy it from"):
            load(folder)
    assert not absent.exists()


def test_a_folder_that_cannot_hold_weights_is_named_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, empty, file = tmp_path / "absent", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("x")
    for folder, actions, words in (
        (absent, ("verify", "convert"), "no such folder"),
        (empty, ("verify",), "holds no weight files"),
        (file, ("verify", "convert", "path", "download"), "this is a file"),
    ):
        for action in actions:
            assert main(["weights", action, "--weights", str(folder)]) == 1
            assert f"{folder}: {words}" in capsys.readouterr().err
    for command in (["weights", "path"], ["info"]):
        assert main([*command, "--weights", str(absent)]) == 0
        assert f"missing  {absent}  (no such folder)" in capsys.readouterr().out
    monkeypatch.setenv("THINKSOUND_WEIGHTS", "~nobody-of-this-name/weights")
    assert main(["weights", "path"]) == 1
    assert "THINKSOUND_WEIGHTS=~nobody-of-this-name/weights: " in capsys.readouterr().err


def test_every_verified_file_has_progress_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    shutil.copytree(default_bundled(), tmp_path / "own" / "tiny")
    monkeypatch.setenv("THINKSOUND_WEIGHTS", str(tmp_path))
    for weights in (tmp_path / "own", tmp_path):  # inside of the weights folder, and elsewhere
        seen.clear()
        rows = checksums.verify(weights, progress=lambda *row: seen.append(row))
        assert len({label for label, _, _ in seen}) == len(rows)
        assert [done for _, done, _ in seen][-1] == rows[-1].size


def default_bundled() -> Path:
    return WEIGHTS / "tiny"
