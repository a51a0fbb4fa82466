"""DFN5B CLIP ViT-H/14, MMAudio's CLIP: frames and texts to features.

Data Filtering Networks (arXiv 2309.17425); MMAudio's use of it: arXiv 2412.15322, section 3.1. As in MMAudio,
the features of frames and tokens have unit length. Token features are the text tower's states after its final
layer norm, at all 77 positions, under the causal mask without a padding mask. MMAudio resizes frames to 384
pixels, but the network was trained on 378: the last 6 rows and columns, less than a patch, are not used.

open_clip provides the network and the tokenizer. Its loading functions are not used, because they download
what a description names. Importing this module imports open_clip and timm, which takes about half a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import WeightsError
from .pixels import encode_in_batches, normalize_clip
from .pretrained import TEXT_LENGTH, described_by, read_description
from .reading import Reading, read_beginning

FRAME_SIZE = 384  # pixels on each side
CONFIG_FILE = "open_clip_config.json"

# The published ViT-H/14 in open_clip's format; a description must have these entries and no others.
PUBLISHED_CONFIG: dict[str, Any] = {
    "embed_dim": 1024,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 378, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}


class _SpecialWords(dict[str, str]):
    """A cache for the tokenizer with its special words only; others would stay in memory for ever."""

    def __setitem__(self, word: str, tokens: str) -> None:
        pass


class Tokenizer:
    """open_clip's tokenizer, bounded in time for texts of any length; open_clip contains its vocabulary."""

    def __init__(self) -> None:
        self._tokenizer = SimpleTokenizer(context_length=TEXT_LENGTH)
        clean = self._tokenizer.clean_fn
        # The time for a word grows with the square of its length, so cleaned texts are cut at this length.
        # 77 tokens cover less of them, since words are separated by one space.
        self._longest = longest = TEXT_LENGTH * (1 + max(map(len, self._tokenizer.encoder)))
        self._tokenizer.clean_fn = lambda text: clean(text)[:longest]
        self._tokenizer.cache = _SpecialWords(self._tokenizer.cache)

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.vocab_size)

    def __call__(self, text: str) -> Tensor:
        """Returns token ids ``(1, 77)`` on the CPU: the first 75 of ``text``, padded with 0."""
        ids: Tensor = self._tokenizer([text])
        return ids

    def fits(self, text: str) -> bool:
        """Whether all tokens of ``text`` fit between the start token and the end token."""
        if len(self._tokenizer.clean_fn(text)) == self._longest:
            return False  # it was cut
        return len(self._tokenizer.encode(text)) <= TEXT_LENGTH - 2


class DFN5B:
    """Both towers and their tokenizer; runs on the device and in the dtype of ``model``."""

    def __init__(self, model: CLIP, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode_frames(
        self, frames: Tensor, *, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Returns one feature per frame.

        Args:
            frames: uint8 ``(V, 384, 384, 3)``, on any device; moved to the network's in batches.
            batch_size: frames per call of the network.
            progress: called after each batch with the frames done and the frames in all.

        Returns:
            Projected features of unit length, ``(V, D)`` float32 on the network's device.
        """
        height, width = self.model.visual.image_size
        weight = self.model.visual.conv1.weight

        def encode(batch: Tensor) -> Tensor:
            pixels = normalize_clip(batch[:, :height, :width].to(weight.device)).to(weight.dtype)
            return normalize(self.model.encode_image(pixels).float(), dim=-1)  # (N, D)

        return encode_in_batches(frames, encode, batch_size, progress)

    @torch.inference_mode()
    def encode_text(self, text: str) -> Tensor:
        """Returns token features of unit length, ``(77, D)`` float32 on the network's device."""
        model = self.model
        ids = self.tokenizer(text).to(model.positional_embedding.device)
        hidden = model.token_embedding(ids) + model.positional_embedding  # (1, N, D)
        hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask))
        return normalize(hidden[0].float(), dim=-1)

    def read(self, text: str) -> Reading:
        """Returns how much of ``text`` the network reads."""
        return read_beginning(text, self.tokenizer.fits)


def build_network(config: dict[str, Any]) -> CLIP:
    """Returns the network of ``config``, in the form of PUBLISHED_CONFIG, with its parameters on ``meta``."""
    with torch.device("meta"):
        model = CLIP(**config)
    # The causal mask is in no checkpoint: minus infinity where a token would attend to a later one.
    hidden = torch.full((model.context_length, model.context_length), float("-inf"))
    model.attn_mask = hidden.triu(1)
    model.train(False)
    return model


def build_dfn5b(folder: Path) -> DFN5B:
    """Returns DFN5B CLIP as ``folder`` describes it, with its parameters on ``meta``.

    Raises WeightsError if the folder has no description of such a network.
    """
    path = folder / CONFIG_FILE
    description = read_description(path)
    config = description.get("model_cfg", description)
    tokenizer = Tokenizer()
    try:
        _check_form(config, PUBLISHED_CONFIG, "the description")
        _check_values(config, tokenizer)
    except ValueError as error:
        raise WeightsError(
            f"{path}: not a CLIP that MMAudio can use ({error}); give the folder of "
            "apple/DFN5B-CLIP-ViT-H-14-378"
        ) from error
    with described_by(path):
        model = build_network(config)
    return DFN5B(model, tokenizer)


def _check_form(value: object, published: object, name: str) -> None:
    """Raises ValueError unless ``value`` has the entries and types of ``published``, and integers above 0.

    Other entries are refused because open_clip reads some as names of networks to download.
    """
    if type(value) is not type(published):
        raise ValueError(f"{name} is a {type(value).__name__}, not a {type(published).__name__}")
    if isinstance(value, dict) and isinstance(published, dict):
        for key in sorted(value.keys() ^ published.keys()):
            raise ValueError(f"{name} {'names' if key in value else 'lacks'} {key[:40]!a}")
        for key, inner in value.items():
            _check_form(inner, published[key], key)
    elif type(value) is int and value < 1:
        raise ValueError(f"{name} is {value}")


def _check_values(config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raises ValueError if entries do not fit each other, the frame size or the tokenizer."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not vision["patch_size"] <= vision["image_size"] <= FRAME_SIZE:
        raise ValueError(
            f"image_size is {vision['image_size']}, from {vision['patch_size']} to {FRAME_SIZE} is possible"
        )
    if vision["width"] % vision["head_width"]:
        raise ValueError(f"width {vision['width']} is no multiple of head_width {vision['head_width']}")
    if text["width"] % text["heads"]:
        raise ValueError(f"width {text['width']} is no multiple of heads {text['heads']}")
    for name, needed in (("context_length", TEXT_LENGTH), ("vocab_size", tokenizer.vocabulary_size)):
        if text[name] != needed:
            raise ValueError(f"{name} is {text[name]}, {needed} is needed")
