"""What MetaCLIP and T5 share: their folder in the layout of Hugging Face, and their tokens.

A folder is what the model hub publishes: ``config.json``, tokenizer files, weights. Nothing is
fetched here, and the weights themselves are filled in by ``thinksound.checkpoints``.
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

TEXT_LENGTH = MMDiTConfig.text_length  # tokens of a text, start, end and padding included


# What a description may ask for: the largest networks of these families have a tenth of it. Sizes that are
# too large would be allocated, or take hours, before the weights show that they are not these.
_MOST_LAYERS = 1000
_LARGEST_SIZE = 1 << 20
_LARGEST_IMAGE = 1024  # pixels a side
_LARGEST_TOKENIZER = 1 << 26  # bytes

_PROBE = "A dog barks 3 times; \u732b \u043a\u043e\u0442."  # letters, digits and what no vocabulary may have


def check_folder(folder: Path, model_type: str, tokenizers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Make sure that ``folder`` describes a network of ``model_type`` and has a tokenizer.

    tokenizers: sets of files of which one must be there in full; empty for a network that reads no text.
        Without this check transformers would quietly give an empty vocabulary.
    Returns the description, whose numbers are of a possible size. Raises WeightsError.
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
    """The network description in ``config``, with numbers of a possible size. Raises WeightsError."""
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
    """The entries of one ``config.json``, of the types that a network needs; raises ValueError for others."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = entries

    def section(self, name: str) -> Description:
        """A nested object, empty where it is left out. Old files repeat it in full as ``{name}_dict``."""
        for key in (f"{name}_dict", name):
            found = self._entries.get(key)
            if isinstance(found, dict):
                return Description(found)
            if found is not None:
                raise ValueError(f"{key} is no object")
        return Description({})

    def count(self, name: str, default: int) -> int:
        """A whole number from 0 on."""
        found = self._entries.get(name, default)
        if type(found) is not int or found < 0:
            raise ValueError(f"{name} is no count")
        return found

    def number(self, name: str, default: float) -> float:
        """A number from 0 on."""
        found = self._entries.get(name, default)
        if type(found) not in (int, float) or not found >= 0:
            raise ValueError(f"{name} is no number from 0 on")
        return float(found)

    def word(self, name: str, default: str) -> str:
        found = self._entries.get(name, default)
        if not isinstance(found, str):
            raise ValueError(f"{name} is no word")
        return found


# Read by transformers with Python's json, which follows any nesting and takes any type.
_TOKENIZER_OBJECTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)


def _check_sizes(value: object, name: str = "") -> None:
    """Raise ValueError for a number that no network of these families has; ``name`` is its key."""
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
    """Turn what libraries raise for the content of ``source`` into words.

    Of this project only the networks may run inside. Libraries check little of what they read, so damage
    surfaces as any exception, and as a panic of the Rust part, which is no `Exception`.
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
    """Make sure that the tokenizer works, and that the network has a vector for every token of it.

    Raises WeightsError.
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
    """Token ids of ``text``, cut or padded to 77, and their mask (1 text, 0 padding): both ``(1, 77)``."""
    tokens = tokenizer(
        text, max_length=TEXT_LENGTH, padding="max_length", truncation=True, return_tensors="pt"
    )
    return tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
