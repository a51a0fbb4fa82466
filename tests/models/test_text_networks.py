"""CLIP and T5 against the transformers library, bit for bit, in every dtype."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from support.paths import ROOT
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, T5Config, T5EncoderModel

from thinksound.encoders import metaclip, t5
from thinksound.models.t5 import WideLinear

pytestmark = pytest.mark.slow

TINY = ROOT / "weights" / "tiny"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 2, 30, 76, 77)  # tokens of a text, 77 without padding


def filled(network: nn.Module, reference: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``network`` with the values of ``reference``, which gets the same dtype."""
    reference.eval().to(dtype)
    network.load_state_dict(reference.state_dict(), strict=True, assign=True)
    return network


def texts(vocabulary: int, length: int) -> tuple[Tensor, Tensor]:
    """Two random texts of ``length`` tokens, the last of the vocabulary at their end and as padding."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, vocabulary - 1, (2, 77), generator=generator)
    ids[:, length - 1 :] = vocabulary - 1
    mask = (torch.arange(77) < length).long().expand(2, -1)
    return ids, mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.inference_mode()
def test_clip_equals_the_reference(dtype: torch.dtype, activation: str) -> None:
    torch.manual_seed(0)
    description = json.loads((TINY / "metaclip" / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        description[tower]["hidden_act"] = activation
    reference = CLIPModel(CLIPConfig.from_dict(description, attn_implementation="sdpa"))
    network = metaclip.build_network(description)
    filled(network, reference, dtype)
    pixels = torch.randn(3, 3, 224, 224)
    assert torch.equal(network.image_features(pixels), reference.get_image_features(pixels).pooler_output)
    for length in LENGTHS:
        ids, mask = texts(description["text_config"]["vocab_size"], length)
        wanted = reference.text_model(ids, attention_mask=mask).last_hidden_state
        padding = None if length == 77 else mask
        assert torch.equal(network.text_model(ids, padding), wanted)
        wanted = reference.get_text_features(ids, attention_mask=mask).pooler_output
        assert torch.equal(network.text_features(ids, padding), wanted)


@pytest.mark.parametrize("gain", [1, 1e5], ids=["", "loud"])  # loud: the first layer overflows float16
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_t5_equals_the_reference(dtype: torch.dtype, gain: float) -> None:
    torch.manual_seed(0)
    description = json.loads((TINY / "t5" / "config.json").read_text())
    reference = T5EncoderModel(T5Config.from_dict(description, attn_implementation="eager"))
    # The deviation from the reference: these projections answer in float32.
    for name, module in list(reference.named_modules()):
        if name.endswith("DenseReluDense.wo"):
            wide = WideLinear(module.in_features, module.out_features, bias=False)
            wide.weight = module.weight
            reference.set_submodule(name, wide)
    projection: Any = reference.get_submodule("encoder.block.0.layer.0.SelfAttention.o")
    projection.weight.mul_(gain)
    network = t5.build_network(description)
    filled(network, reference, dtype)
    for length in LENGTHS:
        ids, mask = texts(description["vocab_size"], length)
        assert torch.equal(network(ids, mask), reference(ids, attention_mask=mask).last_hidden_state)
    assert torch.equal(network(ids), network(ids, mask))  # of the longest, which has no padding


@pytest.mark.parametrize("published", [metaclip.PUBLISHED_CONFIG, {"model_type": "clip"}])
def test_clip_descriptions_mean_what_they_mean_in_the_reference(published: dict) -> None:
    with torch.device("meta"):
        reference = CLIPModel(CLIPConfig(**deepcopy(published)))  # which changes what it is given
    assert shapes(metaclip.build_network(published)) == shapes(reference)
    text = metaclip.network_config(published).text
    wanted = reference.text_model.config
    assert (text.activation, text.norm_eps) == (wanted.hidden_act, wanted.layer_norm_eps)
    old = {**published, "text_config_dict": {"hidden_size": 64}, "vision_config_dict": None}
    with torch.device("meta"):
        reference = CLIPModel(CLIPConfig(**deepcopy(old)))
    assert shapes(metaclip.build_network(old)) == shapes(reference)


def test_t5_descriptions_mean_what_they_mean_in_the_reference() -> None:
    for description in (t5.PUBLISHED_CONFIG, {"feed_forward_proj": "gated-gelu"}):
        reference = T5Config(**description)
        with torch.device("meta"):
            assert shapes(t5.build_network(description)) == shapes(T5EncoderModel(reference))
        config = t5.network_config(description)
        assert config.furthest_position == reference.relative_attention_max_distance
        assert config.norm_eps == reference.layer_norm_epsilon
        assert config.dropout == reference.dropout_rate


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("build", "change", "words"),
    [
        (metaclip.build_network, {"text_config": 1}, "text_config is no object"),
        (metaclip.build_network, {"projection_dim": "64"}, "projection_dim is no count"),
        (metaclip.build_network, {"projection_dim": -1}, "projection_dim is no count"),
        (metaclip.build_network, {"vision_config": {"image_size": 336}}, "images of 336 pixels"),
        (metaclip.build_network, {"text_config": {"max_position_embeddings": 50}}, "texts of 50 tokens"),
        (metaclip.build_network, {"text_config": {"num_attention_heads": 7}}, "not a multiple of 7"),
        (metaclip.build_network, {"text_config": {"hidden_act": "relu"}}, "activation 'relu'"),
        (metaclip.build_network, {"text_config": {"hidden_act": None}}, "hidden_act is no word"),
        (metaclip.build_network, {"vision_config": {"patch_size": 0}}, "patches of 0 pixels"),
        (metaclip.build_network, {"text_config": {"layer_norm_eps": float("nan")}}, "layer_norm_eps is no"),
        (t5.build_network, {}, "feed_forward_proj is 'relu'"),
        (t5.build_network, {"feed_forward_proj": "gated-gelu", "num_layers": 0}, "no layers"),
        (
            t5.build_network,
            {"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 2},
            "2 position buckets",
        ),
    ],
)
def test_a_description_of_another_network_is_refused(build, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(change)
