"""What a wheel contains, and that it works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
BUNDLED = sorted(
    path.relative_to(ROOT / "weights").as_posix()
    for folder in ("tiny", "judges")
    for path in (ROOT / "weights" / folder).rglob("*")
    if path.is_file()
)
# What a user may have in the weights folder of a checkout.
DOWNLOADED = (
    "vae.ckpt",
    ".download/abc.partial",
    "converted/vae.safetensors",
    "checksums.json",
    "tiny/own.ckpt",
)


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "THINKSOUND_WEIGHTS")
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=outside | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def build(source: Path, output: Path) -> Path:
    pip = ("-m", "pip", "--disable-pip-version-check")
    done = python(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", output, cwd=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = output.glob("thinksound_cog-*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout into whose weights folder something was downloaded."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "requirements.txt",
    ):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "thinksound", folder / "thinksound", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", *BUNDLED):
        (folder / "weights" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "weights" / name, folder / "weights" / name)
    for name in DOWNLOADED:
        (folder / "weights" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "weights" / name).write_text("not ours to give away")
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The folder with the unpacked wheel, for ``PYTHONPATH``; dependencies are those of the tests."""
    target = tmp_path / "site"
    ZipFile(wheel).extractall(target)
    return target


def test_a_wheel_contains_the_package_and_what_is_bundled_and_no_download(source: Path, wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(source).as_posix() for path in (source / "thinksound").rglob("*") if path.is_file()
    }
    assert names == modules | {f"thinksound/bundled/{name}" for name in ("README.md", *BUNDLED)}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in ZipFile(wheel).namelist())


def test_the_source_distribution_gives_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    done = python("-c", code, cwd=source)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    again = build(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    assert sorted(ZipFile(again).namelist()) == sorted(ZipFile(wheel).namelist())


def test_an_installed_wheel_works_outside_of_a_checkout(installed: Path, clips: Path, tmp_path: Path) -> None:
    elsewhere, cache = tmp_path / "elsewhere", tmp_path / "cache"
    elsewhere.mkdir()
    before = {path: path.stat().st_mtime_ns for path in (installed / "thinksound" / "bundled").rglob("*")}

    def run(*arguments: str | Path) -> str:
        places = {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
        done = python(*arguments, cwd=elsewhere, **places)
        assert done.returncode == 0, done.stderr
        return done.stdout

    clip = clips / "cfr30_0p3s.mp4"
    options = ("--preset", "tiny", "--steps", "2", "--device", "cpu", "--audio", "sound.wav", "-q")
    assert run("-m", "thinksound", "generate", clip, *options, "-o", "out.mp4") == "out.mp4\nsound.wav\n"
    assert (elsewhere / "sound.wav").stat().st_size > 10_000
    rows = run("-m", "thinksound", "weights", "verify", "-q").splitlines()
    assert len(rows) == len([name for name in BUNDLED if name.startswith("tiny/")]) - 1  # without the table
    assert all(
        row.startswith("ok ") and str(installed / "thinksound" / "bundled" / "tiny") in row for row in rows
    )
    info = run("-m", "thinksound", "info")
    assert f"weights      {cache / 'thinksound' / 'weights'}\n" in info
    assert info.count(f"here     {installed}") == 5
    said = run("-m", "thinksound", "weights", "download", "--preset", "tiny", "-q")
    assert not cache.exists() and not said
    code = "from thinksound.evaluation.made.judges import *; "
    code += "load_judges(judges_folder()); print(judges_folder())"
    assert run("-c", code).strip() == str(installed / "thinksound" / "bundled" / "judges")
    assert before == {
        path: path.stat().st_mtime_ns for path in (installed / "thinksound" / "bundled").rglob("*")
    }


def test_messages_say_how_an_installation_is_repaired(installed: Path, tmp_path: Path) -> None:
    code = """if True:
        from thinksound.checkpoints import checksums, locate, registry
        from thinksound.errors import WeightsError
        from thinksound.evaluation.made.judges import judges_folder, load_judges

        def refusal(call, *arguments):
            try:
                call(*arguments)
            except WeightsError as error:
                return str(error)

        folder, file = registry.default_weights_dir(), registry.weight_file("tiny_vae")
        path = locate.published_path(folder, file)
        path.write_bytes(b"x")
        print(refusal(checksums.check, folder, path))
        path.unlink()
        print(locate.describe_missing(folder, [file]).splitlines()[-1])
        (registry.bundled_dir() / "judges" / "judges.json").unlink()
        print(refusal(load_judges, judges_folder()))
        """
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(installed), XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and "git" not in done.stdout
    assert all("; install thinksound-cog again" in line for line in lines)
