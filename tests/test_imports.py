"""What a request of the tiny preset leaves out: libraries whose import takes longer than its networks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# transformers.modeling_utils stands for the networks of that library, which bring scipy and torch's compiler.
UNUSED = {"accelerate", "matplotlib", "open_clip", "peft", "scipy", "sklearn", "tensorboard", "timm"}
UNUSED |= {"sympy", "torch._dynamo", "torchvision"}
UNUSED |= {"transformers.modeling_utils", "transformers.generation", "transformers.loss.loss_utils"}


def modules_after(code: str, cwd: Path) -> set[str]:
    """The modules that a process with this ``code`` has imported in the end."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_a_request_of_the_tiny_preset_imports_no_more_than_it_uses(clips: Path, tmp_path: Path) -> None:
    words = ["generate", str(clips / "cfr30_0p3s.mp4"), "--preset", "tiny", "--device", "cpu"]
    words += ["--steps", "1", "--caption", "wood", "-o", "out.mp4", "-q"]
    modules = modules_after(f"from thinksound.cli import main\nassert main({words!r}) == 0", tmp_path)
    assert {"torch", "av", "thinksound.models.clip", "thinksound.models.t5"} <= modules
    assert not UNUSED & modules


def test_networks_of_texts_are_built_without_the_compiler(tmp_path: Path) -> None:
    """Drawing values for a table on the device ``meta`` would import it."""
    code = """if True:
        import torch
        from thinksound.models.clip import CLIP, CLIPConfig, TowerConfig
        from thinksound.models.t5 import T5Config, T5Encoder

        tower = TowerConfig(8, 8, 1, 2, "gelu", 1e-5)
        with torch.device("meta"):
            CLIP(CLIPConfig(tower, 224, 32, tower, 9, 77, 8)), T5Encoder(T5Config(9, 8, 4, 8, 1, 2))
        """
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & modules_after(code, tmp_path)
