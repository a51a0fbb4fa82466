"""Seeded weights and comparison with the reference data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from parity.procedural import dit_inputs, fill
from safetensors import safe_open
from support.paths import PARITY
from torch import Tensor, nn

from thinksound.models.flow import Conditions, FlowTransformer
from thinksound.models.mmdit import MMDiTConfig
from thinksound.models.oobleck import OobleckConfig
from thinksound.models.synchformer import SynchformerConfig

GOLDEN = PARITY / "golden"

# With other thread counts and kernels, the original differs from itself by up to 2.4e-6. Mistakes that were
# tried (epsilons, interpolation, rotary scaling) give 1e-4 and more.
RELATIVE_L2 = 1e-5

# Sizes of the small networks of the golden files (golden/config_tiny.json).
SMALL_MMDIT = MMDiTConfig(hidden_dim=64, depth=4, fused_depth=2, num_heads=4)
SMALL_VAE = OobleckConfig(channels=8)
SMALL_SYNCHFORMER = SynchformerConfig(embed_dim=48, depth=2, num_heads=4)

# The transformer's inputs in the golden files: clip, sync, text, t5.
FEATURES = ("metaclip_features", "sync_features", "metaclip_text_features", "t5_features")


Network = TypeVar("Network", bound=nn.Module)


def seeded(network: Network, prefix: str) -> Network:
    """Fill a network with the seeded weights of its checkpoint keys."""
    network.load_state_dict(
        {
            key: torch.from_numpy(fill(prefix + key, tuple(value.shape)))
            for key, value in network.state_dict().items()
        }
    )
    return network.eval().requires_grad_(False)


def golden(name: str, folder: Path = GOLDEN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of one golden file."""
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def golden_inputs(metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Make the network inputs of a golden file, and check them against the sums in its metadata."""
    lengths = json.loads(metadata["lengths"])
    inputs = dit_inputs(metadata["tag"], lengths["latent"], lengths["feat_clip"], lengths["feat_sync"])
    for name, (total, magnitude) in json.loads(metadata.get("input_sums", "{}")).items():
        array = inputs[name].astype("float64")
        assert abs(array.sum() - total) < 1e-3 and abs(abs(array).sum() - magnitude) < 1e-3, name
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def four(features: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four features of one request in the transformer's order."""
    clip, sync, text, t5 = features
    return clip, sync, text, t5


def relative_l2(got: Tensor, wanted: Tensor) -> float:
    """``|got - wanted| / |wanted|`` in float64."""
    assert got.shape == wanted.shape, f"{tuple(got.shape)} != {tuple(wanted.shape)}"
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm())


def assert_close(got: Tensor, wanted: Tensor, limit: float = RELATIVE_L2) -> None:
    error = relative_l2(got, wanted)
    assert error <= limit, f"relative L2 error {error:.2e} is above {limit:.0e}"


def assert_matches(found: Mapping[str, Tensor], golden: Mapping[str, Tensor]) -> dict[str, float]:
    """Compare with all tensors of a golden file; return the relative L2 error of each."""
    assert set(found) == set(golden)
    for name, tensor in found.items():
        assert_close(tensor, golden[name])
    return {name: relative_l2(tensor, golden[name]) for name, tensor in found.items()}


def assert_projected(network: FlowTransformer, conditions: Conditions, golden: Mapping[str, Tensor]) -> None:
    """Compare projected conditions, rotary tables and time sinusoids with those of a golden file."""
    assert_close(conditions.clip, golden["mid.cond.clip_f"])
    assert_close(conditions.text, golden["mid.cond.text_f"])
    assert_close(conditions.sync, golden["mid.cond.sync_f"])
    for table, name in (
        (conditions.latent_rotary, "mid.latent_rot"),
        (conditions.clip_rotary, "mid.clip_rot"),
    ):
        assert_close(table[0], golden[name][0, :, :, 0, 0])
        assert_close(table[1], golden[name][0, :, :, 1, 0])
    assert torch.equal(network.t_embed.frequencies(torch.device("cpu")), golden["mid.t_freqs"])
    assert_close(network.t_embed.sinusoids(golden["in.t"]), golden["mid.t_sinusoid"])
