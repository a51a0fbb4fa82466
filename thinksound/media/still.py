"""Reads still images, and writes videos that show one image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import MediaError
from .files import check_output, local_path, whole_file
from .mux import SUFFIXES, create_mp4, decoded_at, encode_sound
from .probe import MAX_PIXELS

FPS = 1  # of the video
_LONGEST_SIDE = 16_384  # more cannot be encoded as H.264
_X264 = {"crf": "18", "preset": "fast", "tune": "stillimage", "bf": "0"}


def read_image(path: Path | str) -> np.ndarray:
    """Return the pixels of an image, upright: uint8 (height, width, 3); of an animation, the first frame.

    Transparency is dropped, as MMAudio does: the colours beneath are seen.

    Raises:
        MediaError: the file is missing, no image, damaged, larger than `MAX_PIXELS` or 16,384 pixels a
            side, or its pixels are 32-bit numbers.
    """
    path = local_path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _upright(path, image)
    except FileNotFoundError:
        raise MediaError(f"{path}: file not found; check the path") from None
    except UnidentifiedImageError:
        raise MediaError(f"{path}: not an image; give a PNG, JPEG or WebP file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: more than {MAX_PIXELS:,} pixels; make it smaller") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, OSError) and error.strerror:  # of the file, not of what is in it
            raise MediaError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
        raise MediaError(f"{path}: cannot be read ({error}); export the image again") from error


def _upright(path: Path, image: Image.Image) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS or max(image.size) > _LONGEST_SIDE:
        raise MediaError(
            f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,}, and {_LONGEST_SIDE:,} "
            "a side, can be used; make it smaller"
        )
    if image.mode in ("I", "F"):  # nobody says what stands for white
        raise MediaError(f"{path}: its pixels are 32-bit numbers; export the image with 8 bits per channel")
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):  # Pillow would clip all but the darkest shades to white
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    return np.array(turned.convert("RGB"))  # writable, as tensors want it


def write_still(
    image: np.ndarray,
    pcm16: Tensor,
    sample_rate: int,
    output: Path | str,
    metadata: Mapping[str, str],
) -> None:
    """Write an MP4 that shows one image for as long as its sound lasts.

    Args:
        image: uint8 (height, width, 3).
        pcm16: int16 (channels, A).
        sample_rate: in Hz.
        output: an .mp4 file; it appears whole or not at all.
        metadata: texts stored in the file under these names.

    Raises:
        OutputError: the ending is not .mp4, the folder is missing or not writable, or the disk is full.
    """
    output = check_output(output, SUFFIXES)
    with whole_file(output) as temporary, create_mp4(temporary) as target:
        target.metadata.update({key: value.replace("\0", " ") for key, value in metadata.items()})
        duration = Fraction(pcm16.shape[1], sample_rate)
        picture = _encode(target, image, duration)
        sound: Iterator[Packet[Any]] = encode_sound(target, pcm16, sample_rate)
        for packet in merge(picture, sound, key=decoded_at):
            target.mux(packet)


def _encode(target: OutputContainer, image: np.ndarray, duration: Fraction) -> Iterator[Packet[Any]]:
    """Add a video stream that shows ``image`` for ``duration`` (s) to ``target``; return its packets."""
    height, width = (side + side % 2 for side in image.shape[:2])  # 4:2:0 needs even sides
    padded = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), "edge")
    stream = target.add_stream("libx264", rate=FPS, options=_X264)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    time_base = Fraction(1, 90_000)
    stream.time_base = stream.codec_context.time_base = time_base

    def packets() -> Iterator[Packet[Any]]:
        start = Fraction(0)
        while start < duration:
            frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
            frame.pts, frame.time_base = round(start / time_base), time_base
            yield from map(timed, stream.encode(frame))
            start += Fraction(1, FPS)
        yield from map(timed, stream.encode(None))

    def timed(packet: Packet[Any]) -> Packet[Any]:
        """The encoder gives all frames the same time; the last one ends with the sound."""
        assert packet.pts is not None
        packet.duration = min(round(1 / FPS / time_base), round(duration / time_base) - packet.pts)
        return packet

    return packets()
