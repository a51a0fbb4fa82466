"""MetaCLIP ViT-H/14: pictures to features, the caption to token features.

Demystifying CLIP Data (arXiv 2309.16671); the network is the CLIP of arXiv 2103.00020. As in the
published extractor, picture features are projected but not normalised, and token features are
the text tower's last states after its final layer norm, at all 77 positions. The padding mask is
given to the text tower: it changes the padded positions, which the transformer later reads too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from ..models.clip import CLIP, CLIPConfig, TowerConfig
from .pixels import IMAGE_SIZE, normalize_clip
from .pretrained import TEXT_LENGTH, Description, check_folder, check_vocabulary, described_by, tokenize

# ViT-H/14 as published, as far as it differs from the defaults of the format.
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
    """The two towers and their tokenizer; follows the device and dtype of ``model``."""

    def __init__(self, model: CLIP, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode_frames(
        self, frames: Tensor, *, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """One feature per picture.

        frames: uint8 ``(V, 224, 224, 3)``, on any device; moved to the network's in batches.
        batch_size: pictures per call of the network.
        progress: called after each batch with the pictures done and the pictures in all.
        Returns float32 ``(V, D)`` on the network's device, projected, not normalised.
        """
        features = []
        for start in range(0, len(frames), batch_size):
            batch = frames[start : start + batch_size].to(self.model.device)
            pixels = normalize_clip(batch)  # (N, 3, 224, 224)
            features.append(self.model.image_features(pixels).float())  # (N, D)
            if progress:
                progress(start + len(batch), len(frames))
        return torch.cat(features)

    @torch.inference_mode()
    def encode_text(self, caption: str) -> Tensor:
        """Token features of ``caption``: float32 ``(77, D)`` on the network's device."""
        ids, mask = tokenize(self.tokenizer, caption, self.model.device)
        # Without padding the causal mask alone is used, for which there are kernels of their own.
        hidden: Tensor = self.model.text_model(ids, None if bool(mask.all()) else mask)  # (1, N, D)
        return hidden[0].float()


def build_network(description: dict[str, Any]) -> CLIP:
    """The CLIP network of a ``config.json`` with its parameters on ``meta``, ready to be filled.

    Raises ValueError for a description of another network.
    """
    config = network_config(description)
    with torch.device("meta"):
        model = CLIP(config)
    model.train(False)
    return model


def network_config(description: dict[str, Any]) -> CLIPConfig:
    """The sizes in a ``config.json``; what it leaves out has the default of that format."""
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
    """MetaCLIP as ``folder`` describes it, its parameters on ``meta``.

    Raises WeightsError if the folder does not hold a CLIP configuration and tokenizer.
    """
    description = check_folder(folder, "clip", TOKENIZER_FILES)
    with described_by(folder / "config.json"):
        model = build_network(description)
    with described_by(folder):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    check_vocabulary(folder, tokenizer, model.text_model.embeddings.token_embedding)
    return MetaCLIP(model, tokenizer)
