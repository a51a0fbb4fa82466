"""Writes a folder like the one in which DFN5B CLIP is published, at a small size with seeded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.mmaudio_reference import seeded_tensors, shapes_of

from thinksound.encoders.dfn5b import CONFIG_FILE, build_network

# 1.9 MB in bfloat16, 1.6 MB of it the embedding of open_clip's 49,408 tokens. Patches of 24 pixels divide the
# frames of 384 pixels evenly and take a quarter of the time of patches of 14.
SMALL_DFN5B: dict[str, Any] = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 384, "layers": 2, "width": 48, "head_width": 16, "patch_size": 24},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def write_dfn5b(
    folder: Path,
    config: dict[str, Any] = SMALL_DFN5B,
    dtype: torch.dtype = torch.bfloat16,
    pickled: bool = False,
) -> Path:
    """Write configuration and weights; ``pickled`` writes the weights in the older published format."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = {"interpolation": "bicubic", "resize_mode": "squash"}
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    seeded = seeded_tensors(shapes_of(build_network(config).state_dict()))
    tensors = {name: seeded[name].to(dtype) for name in seeded}
    if pickled:
        torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(tensors, folder / "open_clip_model.safetensors")
    return folder
