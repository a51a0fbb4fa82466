"""Still images of every kind to pixels, and to a video with sound; what is none is refused in words."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.clips import render
from support.images import HEIGHT, WIDTH, colours, write_animation, write_claim, write_image

from thinksound.errors import MediaError, OutputError
from thinksound.media.still import read_image, write_still

GREY = np.asarray(Image.fromarray(colours()).convert("L").convert("RGB"))


@pytest.mark.parametrize(
    ("name", "mode", "wanted", "tolerance"),
    [
        ("a.png", "RGB", colours(), 0),
        ("a.bmp", "RGB", colours(), 0),
        ("a.tif", "RGB", colours(), 0),
        ("a.webp", "RGB", colours(), 4),
        ("a.jpg", "RGB", colours(), 4),
        ("a.jpg", "CMYK", colours(), 6),
        ("a.png", "RGBA", colours(), 0),
        ("a.png", "LA", GREY, 0),
        ("a.png", "L", GREY, 0),
        ("a.png", "I;16", GREY, 0),
        ("a.tif", "I;16", GREY, 0),
        ("a.png", "P", colours(), 12),
        ("a.gif", "P", colours(), 12),
    ],
)
def test_pixels_of_every_mode(
    tmp_path: Path, name: str, mode: str, wanted: np.ndarray, tolerance: int
) -> None:
    path = write_image(tmp_path / name, mode, **({"quality": 95} if name == "a.jpg" else {}))
    with Image.open(path) as image:
        assert name.endswith("webp") or image.mode == mode
    pixels = read_image(path)
    assert (pixels.shape, pixels.dtype, pixels.flags.writeable) == ((HEIGHT, WIDTH, 3), np.uint8, True)
    assert np.abs(pixels.astype(int) - wanted).mean() <= tolerance


def test_an_image_stands_upright_and_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    turned = write_image(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(turned), np.rot90(colours(), -1))
    first = read_image(write_animation(tmp_path / "a.gif"))
    assert np.abs(first.astype(int) - colours()).mean() < 20


def test_transparency_shows_the_colours_beneath(tmp_path: Path) -> None:
    path = write_image(tmp_path / "palette.png", "P", transparency=0)
    assert np.array_equal(read_image(path), read_image(write_image(tmp_path / "opaque.png", "P")))


def refused(path: Path | str) -> str:
    with pytest.raises(MediaError) as error:
        read_image(path)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (8192, 4353, "8192x4353 pixels; at most 35,651,584"),
        (9000, 9000, "9000x9000 pixels; at most 35,651,584, and 16,384 a side, can be used; make it smaller"),
        (10_000, 10_000, "more than 35,651,584 pixels; make it smaller"),  # Pillow warns of these
        (60_000, 60_000, "more than 35,651,584 pixels; make it smaller"),
        (16_385, 2, "16385x2 pixels; at most"),
        (2, 20_000, "2x20000 pixels; at most"),
    ],
)
def test_an_image_that_is_too_large(tmp_path: Path, width: int, height: int, words: str) -> None:
    assert refused(write_claim(tmp_path / "large.png", width, height)).startswith(words)


def test_what_is_no_usable_image(tmp_path: Path) -> None:
    whole = write_image(tmp_path / "whole.png").read_bytes()
    for content, words in (
        (b"", "not an image; give a PNG, JPEG or WebP file"),
        (b"an image\n" * 20, "not an image"),
        (whole[:100], "cannot be read (image file is truncated"),
        (whole[:-40], "cannot be read ("),
    ):
        (tmp_path / "bad.png").write_bytes(content)
        assert refused(tmp_path / "bad.png").startswith(words)
    assert refused(render(tmp_path / "a.mp4", frames=2)).startswith("not an image")
    assert refused(tmp_path / "nowhere.png") == "file not found; check the path"
    assert refused(tmp_path) == "cannot be opened (Is a directory); check the path"
    assert "is a URL" in refused("https://example.com/a.png")
    for values in (np.array([[1, 70_000]], np.int32), np.array([[0.1, 0.2]], np.float32)):
        Image.fromarray(values).save(tmp_path / "numbers.tif")
        assert refused(tmp_path / "numbers.tif").startswith("its pixels are 32-bit numbers")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tif", "a.bmp"])
def test_damage_of_any_kind_is_a_message_or_an_image(tmp_path: Path, name: str) -> None:
    whole = write_image(tmp_path / name).read_bytes()
    dice = random.Random(name)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        (tmp_path / name).write_bytes(content[: dice.choice((None, dice.randrange(len(content))))])
        try:
            assert read_image(tmp_path / name).ndim == 3
        except MediaError as error:
            assert str(error).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 47), (1, 1), (16_384, 2)])
def test_a_video_of_one_image_is_as_long_as_its_sound(tmp_path: Path, width: int, height: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 200
    generator = torch.Generator().manual_seed(0)
    sound = torch.randint(-9000, 9000, (1, 40_000), generator=generator).to(torch.int16)  # 2.5 s
    output = tmp_path / "out.mp4"
    write_still(pixels, sound, 16_000, output, {"caption": "rain\0", "seed": "7"})
    with av.open(output) as container:
        picture, tone = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.pix_fmt) == ("h264", "yuv420p")
        assert (picture.width, picture.height) == (width + width % 2, height + height % 2)
        assert picture.time_base is not None and picture.duration is not None
        assert picture.duration * picture.time_base == Fraction(5, 2)
        assert (tone.codec_context.name, tone.rate, tone.channels) == ("aac", 16_000, 1)
        assert tone.time_base is not None and tone.duration is not None
        assert tone.duration * tone.time_base == Fraction(5, 2)
        assert {"caption": "rain ", "seed": "7"}.items() <= dict(container.metadata).items()
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    for frame in frames:
        assert np.abs(frame.astype(int) - (200, 0, 0)).max() < 16
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_the_video_of_an_image_is_an_mp4(tmp_path: Path) -> None:
    for name in ("out.avi", "nowhere/out.mp4"):
        with pytest.raises(OutputError):
            write_still(colours(), torch.zeros(1, 160, dtype=torch.int16), 16_000, tmp_path / name, {})
    assert list(tmp_path.iterdir()) == []
