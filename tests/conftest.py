"""Shared fixtures: the reference data and the markers' requirements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.listeners import write_ast, write_clap
from support.paths import CLIPS, PARITY


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder of reference inputs and outputs."""
    return PARITY


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of the small reference clips."""
    return CLIPS


@pytest.fixture(scope="session")
def frames_reference(parity: Path) -> dict:
    return json.loads((parity / "features" / "frames.json").read_text())


@pytest.fixture(scope="session")
def listener_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with the tagger and CLAP; not to be changed."""
    folder = tmp_path_factory.mktemp("weights")
    write_ast(folder)
    write_clap(folder)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out the tests that are marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
    if config.getoption("fast"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
