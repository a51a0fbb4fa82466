"""What Cog's build reads: cog.yaml, requirements.txt, .dockerignore, and the text of predict.py."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cog
import jsonschema
import pytest
import yaml
from support.paths import ROOT
from support.server import image_files, input_schema

from thinksound.errors import InputError
from thinksound.serving.inputs import Limits
from thinksound.serving.worker import Worker

CONFIG = yaml.safe_load((ROOT / "cog.yaml").read_text())
# Cog's own table (pkg/config/torch_compatibility.json): what it can install together.
COG_KNOWS = {
    "cuda": "12.8",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "pythons": "3.10 3.11 3.12 3.13 3.14",
}


def pins(name: str) -> dict[str, str]:
    """Package to exact version in a requirements file, of lines in the one form that Cog understands."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        if line == "-r requirements.txt":
            continue
        match = re.fullmatch(r"([A-Za-z0-9_-]+)==([^ ]+)", line)
        assert match, f"{name}: {line} is not name==version"
        found[match[1]] = match[2]
    return found


@pytest.fixture(scope="module")
def predict_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("predict", ROOT / "predict.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def predictor(predict_module: ModuleType) -> Iterator[Any]:
    """A predictor without networks."""
    made = predict_module.Predictor()
    made.worker, made.limits, made.pipeline = Worker(), Limits(), None
    yield made
    made.worker._folder.cleanup()


def test_cog_yaml_is_valid() -> None:
    schema = json.loads((Path(__file__).parent / "cog_config_schema.json").read_text())
    jsonschema.validate(CONFIG, schema)
    # The schema lets unknown keys pass, and Cog ignores them.
    assert set(CONFIG) <= set(schema["properties"])
    assert set(CONFIG["build"]) <= set(schema["properties"]["build"]["properties"])
    assert CONFIG["predict"] == "predict.py:Predictor"
    assert CONFIG["build"]["gpu"] is True


def test_versions_are_those_of_the_tests() -> None:
    build, requirements = CONFIG["build"], pins(CONFIG["build"]["python_requirements"])
    assert build["sdk_version"] == pins("requirements-dev.txt")["cog"] == cog.__version__
    assert {
        "cuda": build["cuda"],
        "torch": requirements["torch"],
        "torchvision": requirements["torchvision"],
    }.items() <= COG_KNOWS.items()
    assert build["python_version"] in COG_KNOWS["pythons"].split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["requires-python"].removeprefix(">=")
    assert [*map(int, build["python_version"].split("."))] >= [*map(int, needed.split("."))]
    assert "cog" not in requirements, "Cog installs its own SDK"


def test_the_image_holds_code_and_weights_alone(tmp_path: Path) -> None:
    inside = [
        "LICENSE",
        "predict.py",
        "thinksound/__init__.py",
        "thinksound/checkpoints/manifests/vae.ckpt.json",
        "weights/thinksound_light.ckpt",
        "weights/converted/t5-v1_1-xl/model.safetensors",
        "weights/tiny/metaclip/tokenizer.json",
    ]
    outside = [
        ".git/config",
        ".venv/bin/python",
        ".cog/openapi_schema.json",
        "README.md",
        "clip.mp4",
        "docs/http.md",
        "outputs/clip.mp4",
        "tests/predict.py",
        "thinksound/media/__pycache__/mux.pyc",
        "weights/.download/abc.partial",
    ]
    for name in [*inside, *outside]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text((ROOT / ".dockerignore").read_text())
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == sorted(inside)


def test_inputs_can_be_read_from_the_text(predict_module: ModuleType) -> None:
    source = (ROOT / "predict.py").read_text()
    properties = input_schema(source)["properties"]
    assert list(properties) == list(predict_module.Predictor.predict.__annotations__)[:-1]
    assert all(each["description"] for each in properties.values())
    assert predict_module.Predictor.predict.__annotations__["return"] is cog.Path
    assert len(source.splitlines()) <= 130


def test_progress_is_ten_lines_per_stage(
    predict_module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    report = predict_module.tenths(predict_module.log_progress)
    for done in range(1, 5001):
        report("decode", done, 5000)
        report("sample", done, 5000)
    decode = [line for line in caplog.messages if line.startswith("decode")]
    assert decode == [f"decode {500 * tenth}/5000" for tenth in range(1, 11)]
    assert len(caplog.messages) == 20


def test_a_bug_keeps_its_traceback(predictor: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TypeError):  # a bug: None cannot be called
        predictor.predict(cog.Path("clip.mp4"), "", "", 5.0, 24, None, None)
    (record,) = caplog.records
    assert record.exc_info is not None


@pytest.mark.parametrize("video", [None, 5, {"a": 1}, ["data:,"], "clip.mp4"])
def test_a_video_that_is_no_url_is_refused_without_a_schema_too(predictor: Any, video: object) -> None:
    with pytest.raises(InputError, match=f"video {re.escape(repr(video))} is no URL; give an http, https or"):
        predictor.predict(video, "", "", 5.0, 24, None, None)
