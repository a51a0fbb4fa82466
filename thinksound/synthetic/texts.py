"""Caption and chain of thought of a scene, in varied words; they also name what no frame shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .kinds import KINDS
from .materials import MATERIALS
from .scene import Scene, Source

_ORDINALS = ("Begin with", "Start with", "The clip opens on", "First,")
_PLACES = {
    "open air": ("outdoors", "in the open air, without an echo"),
    "small room": ("in a small room", "in a small, dry room"),
    "living room": ("in a living room", "in a furnished living room"),
    "hall": ("in a hall", "in a large hall with a clear echo"),
    "church": ("in a church", "in a church with a long reverberation"),
}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def describe(scene: Scene, materials: Sequence[str] | None = None) -> tuple[str, str]:
    """Caption and chain of thought. Their wording depends on the scene's seed.

    Args:
        scene: what happens.
        materials: one per source, named instead of the true ones, to measure whether a sound follows its
            text; everything else in the texts stays the same.

    Raises:
        InputError: the number of materials is not that of the sources, or a kind cannot have its material.
    """
    claimed = tuple(source.material for source in scene.sources) if materials is None else tuple(materials)
    if len(claimed) != len(scene.sources):
        raise InputError(f"{len(claimed)} materials for {len(scene.sources)} sources; give one for each")
    for source, name in zip(scene.sources, claimed, strict=True):
        if name not in KINDS[source.kind].materials:
            allowed = ", ".join(KINDS[source.kind].materials)
            raise InputError(f"material {name!r} for {source.kind}: use {allowed}")
    rng = np.random.default_rng([scene.seed, 29])
    short, long = _PLACES[scene.room.name]
    named = [_name(rng, source, name) for source, name in zip(scene.sources, claimed, strict=True)]
    caption = " and ".join(named) + (f" {short}" if rng.random() < 0.7 else "")
    parts = []
    for index, (source, name) in enumerate(zip(scene.sources, claimed, strict=True)):
        opening = _pick(rng, _ORDINALS) if index == 0 else _pick(rng, ("Add", "Over it,", "Mix in"))
        parts.append(f"{opening} {_name(rng, source, name)}.")
        parts.append(_course(rng, source))
        heard = MATERIALS[name].heard
        if len(KINDS[source.kind].materials) > 1:
            parts.append(
                _pick(rng, (f"The sound is {heard}.", f"It should be {heard}.", f"Keep the tone {heard}."))
            )
        parts.append(_side(rng, source, scene.duration_s))
    parts.append(
        _pick(rng, (f"All of it happens {long}.", f"The scene is {long}.", f"Everything is heard {long}."))
    )
    return f"{caption[0].upper()}{caption[1:]}", " ".join(parts)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _name(rng: np.random.Generator, source: Source, material: str) -> str:
    return _pick(rng, KINDS[source.kind].words).format(material=MATERIALS[material].adjective)


def _course(rng: np.random.Generator, source: Source) -> str:
    """A sentence on how a source goes on: how often and how fast, or where it is strongest."""
    if source.control is None:
        count = len(source.events)
        number = _NUMBERS[count] if count < len(_NUMBERS) else "many"
        one, manners = {
            "ball": ("bounce", ("each sooner and softer than the last", "coming faster and fading")),
            "hammer": ("blow", ("uneven in strength", "now hard, now light")),
            "clock": ("tick", ("in even time", "as regular as the pendulum")),
            "footsteps": ("step", ("at a walking pace", "in an even rhythm")),
            "drops": ("drop", ("at uneven intervals", "with small wet plops")),
        }[source.kind]
        return f"{number.capitalize()} {one}{'' if count == 1 else 's'}, {_pick(rng, manners)}."
    values = np.array(source.control.values)
    loudest = ("early on", "in the middle", "towards the end")[min(2, int(values.argmax() / len(values) * 3))]
    quality = {
        "engine": ("Its pitch rises and falls with the speed", "The motor revs up and slows down"),
        "rain": ("The shower grows denser and thins out", "The density of the rain keeps changing"),
        "slide": ("It scrapes with every push and rests between", "Each push gives a rough scrape"),
    }[source.kind]
    return f"{_pick(rng, quality)}, strongest {loudest}."


def _side(rng: np.random.Generator, source: Source, duration: float) -> str:
    start, end = float(source.x.at(0.0)), float(source.x.at(duration))
    if source.kind != "slide" and abs(end - start) > 0.25:
        ends = ("left", "right") if end > start else ("right", "left")
        return _pick(rng, ("The sound moves from {} to {}.", "It travels from the {} to the {}.")).format(
            *ends
        )
    middle = float(np.mean(source.x.values))
    side = "on the left" if middle < 0.4 else "on the right" if middle > 0.6 else "in the middle"
    return _pick(rng, (f"It is heard {side}.", f"The sound stays {side}.", f"Place the sound {side}."))
