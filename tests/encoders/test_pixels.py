"""Frames for the visual encoders, against the published extractors."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thinksound.encoders.pixels import (
    clip_pixels,
    normalize_clip,
    normalize_sync,
    squashed_pixels,
    sync_pixels,
)

SIZES = ["48x64", "90x320", "270x480", "480x270", "301x223", "real360x480", "720x1280"]
# First digits of the SHA-256 of each of these frames as published MMAudio squashes it, uint8 (3, 384, 384).
SQUASHED = {
    "270x480": "3a3fef62ae517c63",
    "301x223": "f783abac83fa96cc",
    "480x270": "ce5054323aeb4ae0",
    "48x64": "643effb30d694a01",
    "90x320": "e9e79d6ad68cce79",
    "real360x480": "02aa1358b71e9e77",
}
SHAPES = [
    *[(47, 63), (63, 47), (4, 128), (128, 4), (4, 5), (17, 500), (223, 223), (224, 224), (224, 225)],
    *[(224, 227), (227, 224), (225, 224), (301, 223), (360, 361), (449, 448), (720, 1280)],
]


@pytest.fixture(scope="module")
def transforms(parity: Path) -> dict[str, torch.Tensor]:
    return load_file(parity / "features" / "transforms.safetensors")


def procedural_frame(height: int, width: int) -> np.ndarray:
    """The reference picture of this size; too large to be stored for 720x1280."""
    seed = zlib.crc32(f"frame:{height}x{width}".encode())
    random = np.random.Generator(np.random.PCG64(seed))
    cells = random.integers(0, 256, size=(height // 8 + 1, width // 8 + 1, 3))
    y, x = np.mgrid[0:height, 0:width]
    slope = ((x * 2 + y)[..., None] * np.array([1, 2, 3]) // 7) % 64
    grain = random.integers(0, 33, size=(height, width, 3))
    return np.clip(cells[y // 8, x // 8] * 5 // 8 + slope + grain, 0, 255).astype(np.uint8)


def frame_of(transforms: dict[str, torch.Tensor], size: str) -> np.ndarray:
    if f"frame.{size}" in transforms:
        return transforms[f"frame.{size}"].numpy()
    height, width = map(int, size.split("x"))
    return procedural_frame(height, width)


def test_procedural_frame_is_the_one_the_reference_was_made_from(transforms: dict[str, torch.Tensor]) -> None:
    assert np.array_equal(procedural_frame(270, 480), transforms["frame.270x480"].numpy())


@pytest.mark.parametrize("size", SIZES)
def test_clip_pixels_equal_the_reference(transforms: dict[str, torch.Tensor], size: str) -> None:
    pixels = torch.from_numpy(clip_pixels(frame_of(transforms, size)).copy())
    assert torch.equal(pixels.permute(2, 0, 1), transforms[f"clip.{size}"])


@pytest.mark.parametrize("size", SIZES)
def test_sync_pixels_equal_the_reference(transforms: dict[str, torch.Tensor], size: str) -> None:
    pixels = torch.from_numpy(sync_pixels(frame_of(transforms, size)).copy())
    assert torch.equal(pixels.permute(2, 0, 1), transforms[f"sync.{size}"])


@pytest.mark.parametrize("size", SQUASHED)
def test_squashed_pixels_equal_the_reference(transforms: dict[str, torch.Tensor], size: str) -> None:
    pixels = squashed_pixels(frame_of(transforms, size)).transpose(2, 0, 1)
    assert hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16] == SQUASHED[size]


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_torchvision(shape: tuple[int, int]) -> None:
    """The library that the published extractors call, which is no dependency here."""
    from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture = torch.from_numpy(frame).permute(2, 0, 1)
    sync = Compose([Resize(224, InterpolationMode.BICUBIC, antialias=True), CenterCrop(224)])
    squashed = Resize((384, 384), InterpolationMode.BICUBIC, antialias=True)
    assert np.array_equal(sync_pixels(frame), sync(picture).permute(1, 2, 0))
    assert np.array_equal(squashed_pixels(frame), squashed(picture).permute(1, 2, 0))


def test_views_load_no_encoder_and_nothing_needs_torchvision() -> None:
    program = """
import sys
import thinksound.encoders.views
assert not {"transformers", "torchvision"} & set(sys.modules)
sys.modules["torchvision"] = None  # as if it were not installed
import thinksound.checkpoints.load
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("shape", [(47, 63), (63, 47), (4, 128), (128, 4), (224, 224), (225, 224)])
def test_every_shape_gives_224_by_224(shape: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), 255, np.uint8)
    assert clip_pixels(frame).shape == (224, 224, 3)
    assert sync_pixels(frame).shape == (224, 224, 3)
    assert sync_pixels(frame).min() == 255  # a centre crop shows no padding


def test_an_odd_rest_of_the_padding_goes_to_the_right() -> None:
    frame = np.full((224, 221, 3), 255, np.uint8)  # 3 columns are missing: 1 left, 2 right
    columns = clip_pixels(frame)[0, :, 0]
    assert columns[0] == 0 and (columns[1:222] == 255).all() and (columns[222:] == 0).all()


@pytest.mark.parametrize(
    "name, normalize, limit", [("clip", normalize_clip, 5e-7), ("sync", normalize_sync, 1.2e-7)]
)
def test_normalised_values_equal_the_reference(
    transforms: dict[str, torch.Tensor], name: str, normalize, limit: float
) -> None:
    frames = transforms[f"{name}.270x480"].permute(1, 2, 0)[None]  # (1, 224, 224, 3)
    # Limits measured for this formula against the published processors.
    assert (normalize(frames)[0] - transforms[f"{name}_float.270x480"]).abs().max() <= limit
