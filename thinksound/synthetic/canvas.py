"""Shapes in frame coordinates, drawn with PIL at twice the size and reduced for smooth edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .materials import Color
from .scene import Background

FINE = 2  # drawn pixels per pixel
_MARGIN = 0.03  # of the frame's height, around the background, for a camera that shakes

Point = tuple[float, float]


def shade(color: Color, factor: float) -> Color:
    red, green, blue = (round(min(255, max(0, channel * factor))) for channel in color)
    return red, green, blue


class Canvas:
    """One frame: x in frame widths, y and lengths in frame heights, y downwards."""

    def __init__(self, backdrop: Image.Image, width: int, height: int, shift: Point = (0.0, 0.0)) -> None:
        self.aspect = width / height
        self._unit = FINE * height
        self._shift = shift
        margin = round(_MARGIN * self._unit)
        left, top = margin - round(shift[0] * self._unit), margin - round(shift[1] * self._unit)
        self._image = backdrop.crop((left, top, left + FINE * width, top + FINE * height))
        self._draw = ImageDraw.Draw(self._image)

    def _at(self, x: float, y: float) -> Point:
        return (x * self.aspect + self._shift[0]) * self._unit, (y + self._shift[1]) * self._unit

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        left, top = self._at(x, y)
        r = radius * self._unit
        self._draw.ellipse((left - r, top - r, left + r, top + r), fill=color)

    def oval(self, x: float, y: float, half_width: float, half_height: float, color: Color) -> None:
        left, top = self._at(x, y)
        a, b = half_width * self._unit, half_height * self._unit
        self._draw.ellipse((left - a, top - b, left + a, top + b), fill=color)

    def ball(self, x: float, y: float, radius: float, color: Color) -> None:
        """A disc with a dark rim and a highlight."""
        self.disc(x, y, radius, shade(color, 0.6))
        self.disc(x, y, radius * 0.88, color)
        self.disc(x - 0.33 * radius / self.aspect, y - 0.35 * radius, radius * 0.22, shade(color, 1.7))

    def box(self, x: float, y: float, half_width: float, height: float, color: Color) -> None:
        """A block standing on y, lit from above."""
        left, bottom = self._at(x, y)
        a, h = half_width * self._unit, height * self._unit
        self._draw.rectangle((left - a, bottom - h, left + a, bottom), fill=color, outline=shade(color, 0.55))
        self._draw.rectangle((left - a, bottom - h, left + a, bottom - 0.82 * h), fill=shade(color, 1.25))

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        pixels = [self._at(*point) for point in points]
        thick = max(1, round(width * self._unit))
        self._draw.line(pixels, fill=color, width=thick, joint="curve")
        for left, top in pixels:
            r = thick / 2
            self._draw.ellipse((left - r, top - r, left + r, top + r), fill=color)

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        self._draw.polygon([self._at(*point) for point in points], fill=color, outline=shade(color, 0.6))

    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3)."""
        return np.asarray(self._image.reduce(FINE))


def backdrop(background: Background, width: int, height: int) -> Image.Image:
    """Wall and floor, larger than the frame by a margin on every side."""
    unit = FINE * height
    margin = round(_MARGIN * unit)
    wide, high = FINE * width + 2 * margin, unit + 2 * margin
    floor = margin + round(background.floor_y * unit)
    image = Image.new("RGB", (wide, high), background.wall)
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(background.seed)
    if background.style == "gradient":
        for y in range(floor):
            draw.line((0, y, wide, y), fill=shade(background.wall, 0.7 + 0.5 * y / floor))
    elif background.style in ("planks", "tiles"):
        step = round(unit * rng.uniform(0.09, 0.2))
        line = shade(background.wall, 0.9)
        for x in range(0, wide, step):
            draw.line((x, 0, x, floor), fill=line, width=FINE)
        if background.style == "tiles":
            for y in range(floor, 0, -step):
                draw.line((0, y, wide, y), fill=line, width=FINE)
    elif background.style == "speckles":
        for x, y, r in rng.random((70, 3)) * (wide, floor, 0.02 * unit):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=shade(background.wall, rng.uniform(0.85, 1.1)))
    draw.rectangle((0, floor, wide, high), fill=background.floor)
    draw.line((0, floor, wide, floor), fill=shade(background.floor, 0.7), width=FINE)
    return image
