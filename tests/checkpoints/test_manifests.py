"""Each network, built without memory, has exactly the tensors of its published file."""

from __future__ import annotations

import json

import pytest
import torch
from support.paths import MANIFESTS

from thinksound.models.mmdit import MMDiT, MMDiTConfig
from thinksound.models.oobleck import AudioVAE, OobleckConfig
from thinksound.models.synchformer import SynchformerConfig, VisualTower
from thinksound.models.synchformer_audio import OffsetConfig
from thinksound.models.synchformer_offset import SynchformerOffset

CASES = [
    ("thinksound_light.ckpt", "model.model.", MMDiT, MMDiTConfig(), 415),
    ("thinksound_light.ckpt", "pretransform.model.", AudioVAE, OobleckConfig(), 365),
    ("vae.ckpt", "autoencoder.", AudioVAE, OobleckConfig(), 365),
    ("synchformer_state_dict.pth", "vfeat_extractor.", VisualTower, SynchformerConfig(), 238),
    ("synchformer_state_dict.pth", "", SynchformerOffset, OffsetConfig(), 513),
]


@pytest.mark.parametrize(("file", "prefix", "network", "config", "count"), CASES)
def test_names_shapes_and_formats_are_the_published_ones(file, prefix, network, config, count):
    manifest = json.loads((MANIFESTS / f"{file}.json").read_text())["tensors"]
    wanted = {
        key.removeprefix(prefix): (tuple(shape), dtype)
        for key, (shape, dtype) in manifest.items()
        if key.startswith(prefix)
    }
    with torch.device("meta"):
        state = network(config).state_dict()
    got = {key: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()}
    assert len(wanted) == count
    assert got == wanted
