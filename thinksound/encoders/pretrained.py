"""What the two encoders of the transformers library share: their folder and their tokens.

A folder is what the model hub publishes: ``config.json``, tokenizer files, weights. Nothing is
fetched here, and the weights themselves are filled in by ``thinksound.checkpoints``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..config import MMDiTConfig
from ..errors import WeightsError

TEXT_LENGTH = MMDiTConfig.text_length  # tokens of a text, start, end and padding included


def check_folder(folder: Path, model_type: str, tokenizers: Sequence[Sequence[str]]) -> None:
    """Make sure that ``folder`` describes a network of ``model_type`` and has a tokenizer.

    tokenizers: sets of files of which one must be there in full; empty for a network that reads no text.
        Without this check transformers would quietly give an empty vocabulary.
    Raises WeightsError.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise WeightsError(
            f"{config}: file not found; run `thinksound weights download` or copy the folder whole"
        )
    try:
        found = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{config}: not a network description ({error!r}); download the file again"
        ) from error
    if found != model_type:
        raise WeightsError(
            f"{config}: describes a {found!r} network, {model_type!r} is needed; check the folder"
        )
    if tokenizers and not any(all((folder / name).is_file() for name in names) for names in tokenizers):
        wanted = " or ".join(" with ".join(names) for names in tokenizers)
        raise WeightsError(f"{folder}: no tokenizer; {wanted} is needed, run `thinksound weights download`")


def check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, embedding: nn.Embedding) -> None:
    """Make sure that the network has a vector for every token of its tokenizer.

    Raises WeightsError.
    """
    if len(tokenizer) > embedding.num_embeddings:
        raise WeightsError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the network {embedding.num_embeddings}; "
            "they belong to different networks, download the folder again"
        )


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids of ``text``, cut or padded to 77, and their mask (1 text, 0 padding): both ``(1, 77)``."""
    tokens = tokenizer(
        text, max_length=TEXT_LENGTH, padding="max_length", truncation=True, return_tensors="pt"
    )
    return tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
