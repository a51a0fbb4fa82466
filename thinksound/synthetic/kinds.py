"""The kinds of visible events: impulsive or continuous, their pitch, materials and words."""

from __future__ import annotations

from dataclasses import dataclass

from .materials import MATERIALS


@dataclass(frozen=True)
class Kind:
    """One kind of visible event.

    ``pitch`` scales the frequencies of its material's modes, ``ring`` their decay times. ``words`` name it in
    texts; each holds ``{material}``.
    """

    impulsive: bool
    pitch: float
    words: tuple[str, ...]
    materials: tuple[str, ...] = tuple(MATERIALS)
    ring: float = 1.0  # below 1 if the body cannot ring freely


KINDS = {
    "ball": Kind(True, 1.0, ("a {material} ball bouncing", "a bouncing {material} ball")),
    "hammer": Kind(
        True, 0.62, ("a hammer striking a {material} block", "a {material} block hit with a hammer")
    ),
    "clock": Kind(
        True,
        1.7,
        ("a {material} clock ticking", "the steady ticking of a {material} pendulum clock"),
        ("wood", "metal", "glass", "stone"),
        ring=0.4,
    ),
    "footsteps": Kind(
        True,
        0.6,
        ("footsteps on a {material} floor", "someone walking with footsteps on a {material} floor"),
        ring=0.6,
    ),
    "drops": Kind(
        True,
        1.25,
        ("water drops falling on a {material} plate", "drops hitting a {material} plate one by one"),
        ring=0.7,
    ),
    "engine": Kind(
        False,
        1.0,
        ("a {material} engine running", "the hum of a {material} engine changing speed"),
        ("metal",),
    ),
    "rain": Kind(
        False, 1.4, ("rain falling on a {material} roof", "a rain shower drumming on a {material} roof")
    ),
    "slide": Kind(
        False, 0.9, ("a {material} box sliding over the floor", "a {material} box scraping and sliding about")
    ),
}
ENGINE_HZ = (100.0, 400.0)
