"""The encoders against reference outputs, with weights rebuilt by tests/parity/procedural.py.

The same code on another version of transformers or with another attention kernel differs by up to
9e-6, so the limit of 1e-5 holds here too.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity.procedural import fill, sync_frames
from safetensors.torch import load_file
from support import reference
from support.reference import assert_close
from torch import Tensor, nn

from thinksound.encoders import metaclip, t5
from thinksound.encoders.metaclip import MetaCLIP, build_metaclip
from thinksound.encoders.pretrained import tokenize
from thinksound.encoders.sync import encode_sync
from thinksound.encoders.t5 import T5Text, build_t5
from thinksound.models.synchformer import Synchformer


def fill_network(network: nn.Module, prefix: str = "") -> None:
    """Give every parameter its seeded weight; T5's table of vectors is drawn under its shorter name."""
    names = {"encoder.embed_tokens.weight": "shared.weight"}
    weights = {
        name: torch.as_tensor(fill(prefix + names.get(name, name), tuple(value.shape)))
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(weights, strict=True, assign=True)


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def text(parity: Path) -> Path:
    return parity / "features" / "text"


@pytest.fixture(scope="module")
def golden(text: Path) -> dict[str, Tensor]:
    return load_file(text / "golden.safetensors")


@pytest.fixture(scope="module")
def captions(text: Path) -> list[str]:
    return json.loads((text / "captions.json").read_text())


@pytest.fixture(scope="module")
def clip(text: Path) -> MetaCLIP:
    encoder = build_metaclip(text / "clip_tiny")
    fill_network(encoder.model)
    return encoder


@pytest.fixture(scope="module")
def t5_text(text: Path) -> T5Text:
    encoder = build_t5(text / "t5_tiny")
    fill_network(encoder.model)
    return encoder


@pytest.mark.parametrize("index", range(9))
def test_caption_tokens_and_their_features(
    clip: MetaCLIP, golden: dict[str, Tensor], captions: list[str], index: int
) -> None:
    ids, mask = tokenize(clip.tokenizer, captions[index], torch.device("cpu"))
    assert torch.equal(ids[0], golden["clip.input_ids"][index])
    assert torch.equal(mask[0], golden["clip.attention_mask"][index])
    assert_close(clip.encode_text(captions[index]), golden["clip.hidden"][index])


@torch.inference_mode()
def test_pooled_caption_of_the_same_network(
    clip: MetaCLIP, golden: dict[str, Tensor], captions: list[str]
) -> None:
    ids, mask = zip(
        *(tokenize(clip.tokenizer, caption, torch.device("cpu")) for caption in captions), strict=True
    )
    pooled = clip.model.text_features(torch.cat(ids), torch.cat(mask))
    assert_close(pooled, golden["clip.global"])


@pytest.mark.parametrize("index", range(9))
def test_description_tokens_and_their_features(
    t5_text: T5Text, golden: dict[str, Tensor], captions: list[str], index: int
) -> None:
    ids, mask = tokenize(t5_text.tokenizer, captions[index], torch.device("cpu"))
    assert torch.equal(ids[0], golden["t5.input_ids"][index])
    assert torch.equal(mask[0], golden["t5.attention_mask"][index])
    assert_close(t5_text.encode(captions[index]), golden["t5.hidden"][index])


def test_picture_features(clip: MetaCLIP, golden: dict[str, Tensor], parity: Path) -> None:
    transforms = load_file(parity / "features" / "transforms.safetensors")
    names = ("48x64", "270x480", "real360x480")
    frames = torch.stack([transforms[f"clip.{name}"] for name in names]).permute(0, 2, 3, 1)
    assert_close(clip.encode_frames(frames), golden["image.features"])


def test_synchformer_features() -> None:
    tensors, about = reference.golden("synchformer_tiny")
    network = reference.seeded(Synchformer(reference.SMALL_SYNCHFORMER), "")
    frames = torch.from_numpy(sync_frames(about["tag"], int(about["frames"]))).permute(0, 2, 3, 1)
    assert_close(encode_sync(network.vfeat_extractor, frames), tensors["out.features"][0])


def test_full_size_metaclip_has_the_published_tensors(text: Path) -> None:
    network = metaclip.build_network(metaclip.PUBLISHED_CONFIG)
    assert shapes(network) == json.loads((text / "manifest_metaclip_h14.json").read_text())
    assert all(parameter.is_meta for parameter in network.parameters())


def test_full_size_t5_has_the_published_tensors(text: Path) -> None:
    network = t5.build_network(t5.PUBLISHED_CONFIG)
    assert shapes(network) == json.loads((text / "manifest_t5_xl_encoder.json").read_text())
    assert all(parameter.is_meta for parameter in network.parameters())
