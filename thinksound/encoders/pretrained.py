"""Checks of encoder folders from the Hugging Face hub, and the tokens of texts.

A folder has a description such as ``config.json``, weights and, for MetaCLIP and T5, tokenizer files. Nothing
is downloaded here; ``thinksound.checkpoints`` loads the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import WeightsError
from ..json_files import read_object
from ..models.mmdit import MMDiTConfig

TEXT_LENGTH = MMDiTConfig.text_length  # tokens of a text, with start, end and padding


# Limits of a description: the largest networks of these families have a tenth of them. Larger sizes would be
# allocated, or take hours, before the weights show that they do not fit.
_MOST_LAYERS = 1000
_LARGEST_SIZE = 1 << 20
_LARGEST_IMAGE = 1024  # pixels a side
_LARGEST_TOKENIZER = 1 << 26  # bytes

_PROBE = "A dog barks 3 times; \u732b \u043a\u043e\u0442."  # letters, digits, and letters that may be unknown


def check_folder(folder: Path, model_type: str, tokenizers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Check that ``folder`` describes a network of ``model_type`` and has a tokenizer.

    Args:
        folder: in the layout of Hugging Face.
        model_type: as ``config.json`` names it.
        tokenizers: sets of files of which one must be complete; empty for a network that reads no text.
            Without them transformers would silently make an empty vocabulary.

    Returns:
        The description, with its numbers checked.

    Raises:
        WeightsError: a file is missing, damaged or of another network.
    """
    config = folder / "config.json"
    description = read_description(config)
    found = description.get("model_type")
    if found != model_type:
        shown = repr(found) if isinstance(found, str) and len(found) < 40 else "nameless"
        raise WeightsError(
            f"{config}: describes a {shown} network, {model_type!r} is needed; check the folder"
        )
    if tokenizers:
        if not any(all((folder / name).is_file() for name in names) for names in tokenizers):
            wanted = " or ".join(" with ".join(names) for names in tokenizers)
            raise WeightsError(
                f"{folder}: no tokenizer; {wanted} is needed, run `thinksound weights download`"
            )
        for name in _TOKENIZER_OBJECTS:
            path = folder / name
            try:
                if path.is_file():
                    read_object(path, _LARGEST_TOKENIZER)
            except (OSError, ValueError) as error:
                raise WeightsError(
                    f"{path}: not part of a tokenizer ({error}); download the file again"
                ) from error
    return description


def read_description(config: Path) -> dict[str, Any]:
    """Returns the description in ``config``; raises WeightsError if it is missing, damaged or too large."""
    if not config.is_file():
        raise WeightsError(
            f"{config}: file not found; run `thinksound weights download` or copy the folder whole"
        )
    try:
        description = read_object(config)
        _check_sizes(description)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{config}: not a network description ({error}); download the file again"
        ) from error
    return description


class Description:
    """The entries of a ``config.json``; its methods raise ValueError for an entry of the wrong type."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = entries

    def section(self, name: str) -> Description:
        """Returns a nested object, empty if it is missing. Old files have a full copy as ``{name}_dict``."""
        for key in (f"{name}_dict", name):
            found = self._entries.get(key)
            if isinstance(found, dict):
                return Description(found)
            if found is not None:
                raise ValueError(f"{key} is no object")
        return Description({})

    def count(self, name: str, default: int) -> int:
        """Returns an integer of at least 0."""
        found = self._entries.get(name, default)
        if type(found) is not int or found < 0:
            raise ValueError(f"{name} is no count")
        return found

    def number(self, name: str, default: float) -> float:
        """Returns a number of at least 0."""
        found = self._entries.get(name, default)
        if type(found) not in (int, float) or not found >= 0:
            raise ValueError(f"{name} is no number from 0 on")
        return float(found)

    def word(self, name: str, default: str) -> str:
        found = self._entries.get(name, default)
        if not isinstance(found, str):
            raise ValueError(f"{name} is no word")
        return found


# transformers reads these with Python's json, which accepts any nesting and any type.
_TOKENIZER_OBJECTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)


def _check_sizes(value: object, name: str = "") -> None:
    """Raises ValueError for an integer above the limits; ``name`` is its key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_sizes(inner, key)
    elif isinstance(value, list):
        for inner in value:
            _check_sizes(inner, name)
    elif isinstance(value, int):
        most = _LARGEST_SIZE
        if "layers" in name or "depth" in name:
            most = _MOST_LAYERS
        elif name == "image_size":
            most = _LARGEST_IMAGE
        if abs(value) > most:
            raise ValueError(f"{name[:40]} is {value:.3g}, {most} is the most")


@contextmanager
def described_by(source: Path) -> Iterator[None]:
    """Turn exceptions that libraries raise for the content of ``source`` into WeightsError.

    Libraries check little of what they read, so a damaged file can raise any exception, and even a Rust
    panic, which is not an `Exception`. For that reason no code of this project may run inside, except to
    build networks.
    """
    try:
        yield
    except (MemoryError, WeightsError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
        raise WeightsError(f"{source}: damaged or of another kind ({reason}); download it again") from error


def check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, embedding: nn.Embedding) -> None:
    """Check that the tokenizer works and that the network has an embedding for each of its tokens.

    Raises WeightsError if not.
    """
    with described_by(folder):
        count = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    if count > embedding.num_embeddings:
        raise WeightsError(
            f"{folder}: the tokenizer has {count} tokens, the network {embedding.num_embeddings}; "
            "they belong to different networks, download the folder again"
        )
    with described_by(folder):
        ids, _ = tokenize(tokenizer, _PROBE, torch.device("cpu"))
    if ids.shape != (1, TEXT_LENGTH) or not 0 <= int(ids.min()) <= int(ids.max()) < embedding.num_embeddings:
        raise WeightsError(f"{folder}: the tokenizer gives impossible tokens; download the folder again")


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns token ids, cut or padded to 77, and their mask (1 text, 0 padding), both ``(1, 77)``."""
    tokens = tokenizer(
        text, max_length=TEXT_LENGTH, padding="max_length", truncation=True, return_tensors="pt"
    )
    return tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
