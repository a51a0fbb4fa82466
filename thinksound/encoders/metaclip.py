"""MetaCLIP ViT-H/14: frames to features, the caption to token features.

Demystifying CLIP Data (arXiv 2309.16671); the network is the CLIP of arXiv 2103.00020. As in the published
extractor, frame features are projected but not normalised, and token features are the text tower's states
after its final layer norm, at all 77 positions. The text tower gets the padding mask: it changes the padded
positions, which the diffusion transformer reads too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from ..models.clip import CLIP, CLIPConfig, TowerConfig
from .pixels import IMAGE_SIZE, encode_in_batches, normalize_clip
from .pretrained import TEXT_LENGTH, Description, check_folder, check_vocabulary, described_by, tokenize

# The published ViT-H/14, where it differs from the defaults of the format.
PUBLISHED_CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "projection_dim": 1024,
        "hidden_act": "quick_gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "quick_gelu",
    },
}

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class MetaCLIP:
    """Both towers and their tokenizer; runs on the device and in the dtype of ``model``."""

    def __init__(self, model: CLIP, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode_frames(
        self, frames: Tensor, *, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Returns one feature per frame.

        Args:
            frames: uint8 ``(V, 224, 224, 3)``, on any device; moved to the network's in batches.
            batch_size: frames per call of the network.
            progress: called after each batch with the frames done and the frames in all.

        Returns:
            Projected features, not normalised, ``(V, D)`` float32 on the network's device.
        """

        def encode(batch: Tensor) -> Tensor:
            return self.model.image_features(normalize_clip(batch.to(self.model.device))).float()  # (N, D)

        return encode_in_batches(frames, encode, batch_size, progress)

    @torch.inference_mode()
    def encode_text(self, caption: str) -> Tensor:
        """Returns the token features of ``caption``, ``(77, D)`` float32 on the network's device."""
        ids, mask = tokenize(self.tokenizer, caption, self.model.device)
        # Without padding, the causal mask is enough, and attention has faster kernels for it.
        hidden: Tensor = self.model.text_model(ids, None if bool(mask.all()) else mask)  # (1, N, D)
        return hidden[0].float()


def build_network(description: dict[str, Any]) -> CLIP:
    """Returns the CLIP network of a ``config.json`` with its parameters on ``meta``.

    Raises ValueError if the description is of another network.
    """
    config = network_config(description)
    with torch.device("meta"):
        model = CLIP(config)
    model.train(False)
    return model


def network_config(description: dict[str, Any]) -> CLIPConfig:
    """Returns the sizes in a ``config.json``, with the format's defaults for missing entries.

    Raises ValueError if they do not fit the frames and tokens used here.
    """
    whole = Description(description)
    text, vision = whole.section("text_config"), whole.section("vision_config")
    config = CLIPConfig(
        vision=_tower(vision, width=768, hidden_width=3072, num_heads=12),
        image_size=vision.count("image_size", 224),
        patch_size=vision.count("patch_size", 32),
        text=_tower(text, width=512, hidden_width=2048, num_heads=8),
        vocabulary=text.count("vocab_size", 49408),
        text_length=text.count("max_position_embeddings", 77),
        projection_width=whole.count("projection_dim", 512),
    )
    if config.image_size != IMAGE_SIZE or config.text_length < TEXT_LENGTH:
        raise ValueError(
            f"images of {config.image_size} pixels and texts of {config.text_length} tokens, "
            f"{IMAGE_SIZE} and {TEXT_LENGTH} are needed"
        )
    return config


def _tower(section: Description, width: int, hidden_width: int, num_heads: int) -> TowerConfig:
    return TowerConfig(
        width=section.count("hidden_size", width),
        hidden_width=section.count("intermediate_size", hidden_width),
        depth=section.count("num_hidden_layers", 12),
        num_heads=section.count("num_attention_heads", num_heads),
        activation=section.word("hidden_act", "quick_gelu"),
        norm_eps=section.number("layer_norm_eps", 1e-5),
    )


def build_metaclip(folder: Path) -> MetaCLIP:
    """Returns MetaCLIP as ``folder`` describes it, with its parameters on ``meta``.

    Raises WeightsError if the folder lacks a CLIP configuration or tokenizer.
    """
    description = check_folder(folder, "clip", TOKENIZER_FILES)
    with described_by(folder / "config.json"):
        model = build_network(description)
    with described_by(folder):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    check_vocabulary(folder, tokenizer, model.text_model.embeddings.token_embedding)
    return MetaCLIP(model, tokenizer)
