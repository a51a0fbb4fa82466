"""Materials: how they ring, for how long, their usual colour and their words."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Material:
    """Modes of a body of size 1, and the words for it.

    The mode at ratio r to ``base_hz`` decays with a T60 of ``t60_s / (1 + damping * (r - 1))``.
    """

    adjective: str
    heard: str  # how it sounds, in one or two words
    color: Color
    base_hz: float
    ratios: tuple[float, ...]
    t60_s: float
    damping: float
    brightness_hz: float  # above it an impact of full strength excites modes less and less
    click: float  # level of the noise of the contact itself


MATERIALS = {
    "wood": Material(
        "wooden", "warm and short", (166, 114, 62), 420.0, (1.0, 2.57, 4.64, 6.98), 0.16, 0.55, 2600.0, 0.10
    ),
    "metal": Material(
        "metal",
        "bright and ringing",
        (172, 178, 190),
        760.0,
        (1.0, 2.76, 5.40, 8.93, 13.3),
        1.30,
        0.10,
        7500.0,
        0.08,
    ),
    "glass": Material(
        "glass",
        "clear and high",
        (176, 220, 228),
        1900.0,
        (1.0, 2.32, 4.25, 6.63),
        0.42,
        0.12,
        11000.0,
        0.05,
    ),
    "rubber": Material(
        "rubber", "dull and soft", (58, 56, 62), 120.0, (1.0, 1.59, 2.14, 2.65), 0.18, 0.60, 420.0, 0.02
    ),
    "stone": Material(
        "stone",
        "hard and dry",
        (132, 127, 120),
        1150.0,
        (1.0, 1.42, 1.93, 2.51, 3.37, 4.42),
        0.055,
        0.15,
        8000.0,
        0.55,
    ),
}
