"""Small still images in every form that they come in, for tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48


def colours() -> np.ndarray:
    """uint8 (48, 64, 3): red grows to the right, green downwards, blue is a square in the corner."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, WIDTH).astype(np.uint8)
    pixels[..., 1] = np.linspace(0, 255, HEIGHT).astype(np.uint8)[:, None]
    pixels[:16, :16, 2] = 255
    return pixels


def write_image(path: Path, mode: str = "RGB", **settings: Any) -> Path:
    """The image of `colours` in one of Pillow's modes, or with 16 bits a pixel (``I;16``)."""
    image = Image.fromarray(colours())
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(128)
    else:
        image = image.convert(mode)
    image.save(path, **settings)
    return path


def write_animation(path: Path) -> Path:
    """`colours`, then its negative."""
    negative = Image.fromarray(255 - colours())
    Image.fromarray(colours()).save(path, save_all=True, append_images=[negative], duration=100)
    return path


def write_claim(path: Path, width: int, height: int) -> Path:
    """A PNG that says it has this size, and holds a line of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 3 * width))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path
