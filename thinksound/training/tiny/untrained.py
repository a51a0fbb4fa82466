"""The folder of the tiny preset before any training: the real classes with seeded random values.

Every tensor is drawn from its own generator, seeded by its file and name, at a scale that keeps
activations near one: the output is moderate noise that depends on the video and the texts. Training
replaces the values network by network (`write_network`, then `checksums.seal`); the tokenizers and
configurations stay.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPTokenizer, T5Tokenizer

from ...checkpoints.checksums import seal
from ...checkpoints.registry import weight_file
from ...encoders import metaclip, t5
from ...encoders.pretrained import TEXT_LENGTH
from ...families.protocol import TRANSFORMER
from ...families.tiny import SIZES, family
from ...media.files import whole_file
from ...presets import TINY
from .vocabulary import train_clip_tokenizer, train_t5_tokenizer

# Half precision on disk keeps the folder under 25 MB; loading casts.
_STORED = {"mmdit.safetensors": torch.float16}
_SEED = 0
_MMDIT = SIZES[TINY.size].mmdit
_T5_HEAD = 32  # width of one of its attention heads


def make_tiny(folder: Path) -> None:
    """Write every file of the tiny preset: tokenizers, configurations, random networks, checksums.

    Equal versions of the dependencies give equal bytes.

    Args:
        folder: created if missing; ``thinksound.load("tiny", WEIGHTS)`` reads it as ``WEIGHTS/tiny``.
    """
    for name in ("metaclip", "t5"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):  # only names and shapes are needed
        networks = {name: family(TINY).create(name) for name in (TRANSFORMER, "vae", "synchformer")}
    for name, network in networks.items():
        _write_random(folder, Path(weight_file(TINY.weights[name]).path).name, network)
    _write_metaclip(folder)
    _write_t5(folder)
    seal(folder)


def write_network(folder: Path, file: str, tensors: Mapping[str, Tensor]) -> None:
    """Write one network of the preset, whole or not at all, in the dtype that its file has.

    Args:
        folder: of the preset.
        file: as `make_tiny` names it, such as ``mmdit.safetensors`` or ``t5/model.safetensors``.
        tensors: under the network's own names.
    """
    dtype = _STORED.get(file, torch.float32)
    kept = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    with whole_file(folder / file) as temporary:
        temporary.write_bytes(save(kept))


def _write_metaclip(folder: Path) -> None:
    tokenizer = train_clip_tokenizer()
    description = _clip_description(tokenizer)
    _write_json(folder / "metaclip" / "config.json", description)
    _write_json(
        folder / "metaclip" / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": TEXT_LENGTH},
    )
    tokenizer.backend_tokenizer.save(str(folder / "metaclip" / "tokenizer.json"))
    _write_random(folder, "metaclip/model.safetensors", metaclip.build_network(description))


def _write_t5(folder: Path) -> None:
    tokenizer = train_t5_tokenizer(folder / "t5")
    description = _t5_description(tokenizer)
    _write_json(folder / "t5" / "config.json", description)
    _write_json(
        folder / "t5" / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512}
    )
    tokenizer.backend_tokenizer.save(str(folder / "t5" / "tokenizer.json"))
    _write_random(folder, "t5/model.safetensors", t5.build_network(description))


def _clip_description(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    width = _MMDIT.clip_text_dim
    tower = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "hidden_act": "quick_gelu",
    }
    return {
        "model_type": "clip",
        "projection_dim": _MMDIT.clip_dim,
        "text_config": tower
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "vision_config": tower | {"image_size": 224, "patch_size": 32},
    }


def _t5_description(tokenizer: T5Tokenizer) -> dict[str, Any]:
    width = _MMDIT.text_dim
    return {
        "model_type": "t5",
        "d_model": width,
        "d_kv": _T5_HEAD,
        "d_ff": 2 * width,
        "num_heads": 4,
        "num_layers": 2,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": False,
    }


def _draw(file: str, name: str, shape: torch.Size) -> torch.Tensor:
    """Random values of one tensor, at a scale chosen by its name."""
    seed = zlib.crc32(f"{_SEED}/{file}/{name}".encode())
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape), dtype=np.float32)
    value = torch.as_tensor(normal)
    fan_in = math.prod(shape[1:])
    if len(shape) == 1:
        return 1.0 + 0.1 * value if name.endswith("weight") else 0.05 * value
    if name.endswith(("shared.weight", "token_embedding.weight", "position_embedding.weight")):
        return value
    if name.endswith("SelfAttention.q.weight"):
        # T5 does not divide its attention scores by the root of the head's width.
        return value / math.sqrt(fan_in * _T5_HEAD)
    if name.endswith("weight"):
        return value / math.sqrt(fan_in)
    return 0.3 * value


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", newline="\n")


def _write_random(folder: Path, file: str, network: nn.Module) -> None:
    """Write random values under the network's own names."""
    write_network(
        folder, file, {name: _draw(file, name, value.shape) for name, value in network.named_parameters()}
    )
