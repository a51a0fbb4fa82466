"""MetaCLIP ViT-H/14 through transformers: pictures to features, the caption to token features.

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
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase

from .pixels import normalize_clip
from .pretrained import check_folder, check_vocabulary, described_by, tokenize

# ViT-H/14 as published, as far as it differs from the defaults of transformers.
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

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase) -> None:
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
            features.append(self.model.get_image_features(pixels).pooler_output.float())  # (N, D)
            if progress:
                progress(start + len(batch), len(frames))
        return torch.cat(features)

    @torch.inference_mode()
    def encode_text(self, caption: str) -> Tensor:
        """Token features of ``caption``: float32 ``(77, D)`` on the network's device."""
        ids, mask = tokenize(self.tokenizer, caption, self.model.device)
        hidden: Tensor = self.model.text_model(ids, attention_mask=mask).last_hidden_state  # (1, N, D)
        return hidden[0].float()


def build_network(config: CLIPConfig) -> CLIPModel:
    """The CLIP network of ``config`` with its parameters on ``meta``, ready to be filled."""
    with torch.device("meta"):
        model = CLIPModel(config)
    # Not in any checkpoint: position numbers.
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        count = embeddings.position_embedding.num_embeddings
        embeddings.position_ids = torch.arange(count).expand((1, -1))
    model.train(False)
    return model


def build_metaclip(folder: Path) -> MetaCLIP:
    """MetaCLIP as ``folder`` describes it, its parameters on ``meta``.

    Raises WeightsError if the folder does not hold a CLIP configuration and tokenizer.
    """
    description = check_folder(folder, "clip", TOKENIZER_FILES)
    with described_by(folder / "config.json"):
        model = build_network(CLIPConfig.from_dict(description, attn_implementation="sdpa"))
    with described_by(folder):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    check_vocabulary(folder, tokenizer, model.text_model.embeddings.token_embedding)
    return MetaCLIP(model, tokenizer)
