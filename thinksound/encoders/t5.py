"""The encoder of T5-v1.1-XL: the chain of thought to token features.

Exploring the Limits of Transfer Learning (arXiv 1910.10683), version 1.1 with gated GELU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from ..models.t5 import T5Config, T5Encoder
from .pretrained import Description, check_folder, check_vocabulary, described_by, tokenize

# The published T5-v1.1-XL, where it differs from the defaults of the format.
PUBLISHED_CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_heads": 32,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
    "tie_word_embeddings": False,
}

TOKENIZER_FILES = (("tokenizer.json",), ("spiece.model",))


class T5Text:
    """The encoder and its tokenizer; runs on the device and in the dtype of ``model``."""

    def __init__(self, model: T5Encoder, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode(self, text: str) -> Tensor:
        """Returns the token features of ``text``, ``(77, D)`` float32 on the network's device."""
        ids, mask = tokenize(self.tokenizer, text, self.model.device)
        hidden: Tensor = self.model(ids, mask)  # (1, N, D)
        return hidden[0].float()


def build_network(description: dict[str, Any]) -> T5Encoder:
    """Returns the T5 encoder of a ``config.json`` with its parameters on ``meta``.

    Raises ValueError if the description is of another network.
    """
    config = network_config(description)
    with torch.device("meta"):
        model = T5Encoder(config)
    model.train(False)
    return model


def network_config(description: dict[str, Any]) -> T5Config:
    """Returns the sizes in a ``config.json``, with the format's defaults for missing entries.

    Raises ValueError if they are not of version 1.1.
    """
    whole = Description(description)
    mlp = whole.word("feed_forward_proj", "relu")
    if mlp != "gated-gelu":
        raise ValueError(f"feed_forward_proj is {mlp[:40]!r}, version 1.1 has 'gated-gelu'")
    return T5Config(
        vocabulary=whole.count("vocab_size", 32128),
        width=whole.count("d_model", 512),
        head_width=whole.count("d_kv", 64),
        hidden_width=whole.count("d_ff", 2048),
        depth=whole.count("num_layers", 6),
        num_heads=whole.count("num_heads", 8),
        position_buckets=whole.count("relative_attention_num_buckets", 32),
        furthest_position=whole.count("relative_attention_max_distance", 128),
        norm_eps=whole.number("layer_norm_epsilon", 1e-6),
        dropout=whole.number("dropout_rate", 0.1),
    )


def build_t5(folder: Path) -> T5Text:
    """Returns T5's encoder as ``folder`` describes it, with its parameters on ``meta``.

    Raises WeightsError if the folder lacks a T5 configuration or tokenizer.
    """
    description = check_folder(folder, "t5", TOKENIZER_FILES)
    with described_by(folder / "config.json"):
        model = build_network(description)
    with described_by(folder):
        if not (folder / "tokenizer.json").is_file():  # raises if damaged; transformers would not
            SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    check_vocabulary(folder, tokenizer, model.shared)
    return T5Text(model, tokenizer)
