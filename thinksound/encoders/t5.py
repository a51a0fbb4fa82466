"""T5-v1.1-XL's encoder through transformers: the detailed description to token features.

Exploring the Limits of Transfer Learning (arXiv 1910.10683), version 1.1 with gated GELU.

Attention is the plain ("eager") one: with the fused kernel the result differs from the published
extractor's by 9e-6 at a tiny size and by 6e-4 at full size. The residual stream of a trained T5
leaves the range of float16, so the projection that feeds it always computes in float32 and the
stream stays there: any parameter dtype is safe, and float32 parameters give the plain result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel, T5Tokenizer

from .pretrained import check_folder, check_vocabulary, described_by, tokenize

# T5-v1.1-XL as published, as far as it differs from the defaults of transformers.
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
    """The encoder and its tokenizer; follows the device and dtype of ``model``."""

    def __init__(self, model: T5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode(self, text: str) -> Tensor:
        """Token features of ``text``: float32 ``(77, D)`` on the network's device."""
        ids, mask = tokenize(self.tokenizer, text, self.model.device)
        hidden: Tensor = self.model(ids, attention_mask=mask).last_hidden_state  # (1, N, D)
        return hidden[0].float()


class WideLinear(nn.Linear):
    """A linear layer that computes and answers in float32 whatever its weight is stored in."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.float(), self.weight.float())


def build_network(config: T5Config) -> T5EncoderModel:
    """The T5 encoder of ``config`` with its parameters on ``meta``, ready to be filled."""
    with torch.device("meta"):
        model = T5EncoderModel(config)
        for name in [name for name, _ in model.named_modules() if name.endswith("DenseReluDense.wo")]:
            model.set_submodule(name, WideLinear(config.d_ff, config.d_model, bias=False))
    # One module under both of its checkpoint names, so that filling and moving cannot split them.
    model.encoder.embed_tokens = model.shared
    model.train(False)
    return model


def build_t5(folder: Path) -> T5Text:
    """T5's encoder as ``folder`` describes it, its parameters on ``meta``.

    Raises WeightsError if the folder does not hold a T5 configuration and tokenizer.
    """
    description = check_folder(folder, "t5", TOKENIZER_FILES)
    with described_by(folder / "config.json"):
        model = build_network(T5Config.from_dict(description, attn_implementation="eager"))
    with described_by(folder):
        if not (folder / "tokenizer.json").is_file():  # else transformers makes an empty vocabulary of damage
            SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    check_vocabulary(folder, tokenizer, model.shared)
    return T5Text(model, tokenizer)
