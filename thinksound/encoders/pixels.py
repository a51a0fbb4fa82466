"""Resizing and normalisation of frames for the visual encoders, byte-identical to the published extractors.

MetaCLIP sees the whole frame: padded with black to a square, then resized by Pillow. Synchformer sees the
middle: PyTorch resizes the short side to 224, and the centre is cropped. DFN5B, the CLIP of MMAudio, sees the
whole frame resized to a square of 384, whatever its aspect ratio. All three are bicubic, antialiased and
computed in uint8; for the last two the extractors call torchvision, which calls PyTorch. Another library, or
floating-point interpolation, differs by up to 2 of 255 steps (17 for DFN5B); the tests require equality.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

IMAGE_SIZE = 224  # pixels on each side, for MetaCLIP and Synchformer
SQUASHED_SIZE = 384  # for DFN5B

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_ROWS = 1088  # rows of a frame that are resized at once
SYNC_MEAN = SYNC_STD = 0.5  # of every channel


def clip_pixels(frame: np.ndarray) -> np.ndarray:
    """Pad a frame with black to a square and resize it to 224.

    Args:
        frame: uint8 (height, width, 3).

    Returns:
        uint8 (224, 224, 3).
    """
    height, width, _ = frame.shape
    side = max(height, width)
    # Pillow resizes rows, then columns. So a few rows at a time can be padded and resized, which saves the
    # memory of the full square. Black rows stay black and need no first pass.
    square = Image.new("RGB", (IMAGE_SIZE, side))
    left, top = (side - width) // 2, (side - height) // 2  # an odd difference adds a pixel right or below
    for row in range(0, height, _ROWS):
        rows = Image.fromarray(frame[row : row + _ROWS])
        if width < side:
            padded = Image.new("RGB", (side, rows.height))
            padded.paste(rows, (left, 0))
            rows = padded
        square.paste(rows.resize((IMAGE_SIZE, rows.height), Image.Resampling.BICUBIC), (0, top + row))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def sync_pixels(frame: np.ndarray) -> np.ndarray:
    """Resize the short side of a frame to 224 and crop the central square.

    Args:
        frame: uint8 (height, width, 3).

    Returns:
        uint8 (224, 224, 3).
    """
    height, width, _ = frame.shape
    short = min(height, width)
    height, width = (int(IMAGE_SIZE * side / short) for side in (height, width))  # rounded down
    top, left = (round((side - IMAGE_SIZE) / 2) for side in (height, width))  # halves to even
    return _resize(frame, height, width)[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]


def squashed_pixels(frame: np.ndarray) -> np.ndarray:
    """Resize a frame to a square of 384, whatever its aspect ratio.

    Args:
        frame: uint8 (height, width, 3).

    Returns:
        uint8 (384, 384, 3).
    """
    return _resize(frame, SQUASHED_SIZE, SQUASHED_SIZE)


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)  # (3, height, width)
    resized = F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0]
    return resized.permute(1, 2, 0).numpy()


def normalize_clip(frames: Tensor) -> Tensor:
    """Normalise uint8 frames (N, H, W, 3) for either CLIP: float32 (N, 3, H, W)."""
    shift = torch.tensor(CLIP_MEAN, device=frames.device).view(1, 3, 1, 1)
    scale = torch.tensor(CLIP_STD, device=frames.device).view(1, 3, 1, 1)
    return _channels_first(frames).sub_(shift).div_(scale)


def normalize_sync(frames: Tensor) -> Tensor:
    """Normalise uint8 frames (N, H, W, 3) for Synchformer: float32 (N, 3, H, W) in -1..1."""
    return _channels_first(frames).sub_(SYNC_MEAN).div_(SYNC_STD)


def _channels_first(frames: Tensor) -> Tensor:
    """Returns float32 (N, 3, H, W) in 0..1 of uint8 frames (N, H, W, 3)."""
    return frames.permute(0, 3, 1, 2).float().div_(255)


def encode_in_batches(
    frames: Tensor,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Encode frames a few at a time, which bounds memory.

    Args:
        frames: uint8 (P, H, W, 3), on any device.
        encode: turns a batch of frames into one feature (D,) for each.
        batch_size: frames per call of ``encode``.
        progress: called after each batch with the frames done and the frames in all.

    Returns:
        (P, D), on the device and in the dtype of what ``encode`` returns.
    """
    features = []
    for start in range(0, len(frames), batch_size):
        batch = frames[start : start + batch_size]
        features.append(encode(batch))
        if progress:
            progress(start + len(batch), len(frames))
    return torch.cat(features)
