"""Shared fixtures: the reference data and the markers' requirements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

PARITY = Path(__file__).parent / "parity"
CLIPS = PARITY / "features" / "clips"


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
