"""Paths of the repository's files, for tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"  # contains the bundled tiny model and the judges
PARITY = ROOT / "tests" / "parity"  # inputs and outputs of the reference implementations
CLIPS = PARITY / "features" / "clips"
MANIFESTS = ROOT / "thinksound" / "checkpoints" / "manifests"
