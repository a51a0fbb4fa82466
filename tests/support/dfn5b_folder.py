"""A folder as DFN5B CLIP is published in, at a small size, with seeded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.mmaudio_reference import seeded_tensors, shapes_of

from thinksound.encoders.dfn5b import CONFIG_FILE, build_network

# 1.9 MB in bfloat16, of which the vectors of open_clip's 49,408 tokens are 1.6 MB. Patches of 24 pixels fill
# the frames of 384 and cost a quarter of the time that patches of 14 do.
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
    """Write description and weights, the latter in the older of the published forms if ``pickled``."""
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
