"""The options and texts of a request, with their limits and names.

Command line, Python and Cog check requests with these. An `InputError` carries the name of its option, so
that the command line can spell it as it was typed.
"""

from __future__ import annotations

import difflib
import math
import os
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from .errors import InputError
from .rates import MAX_DURATION_S, MIN_DURATION_S

MAX_SEED = 2**32 - 1  # the largest that the original accepts
MAX_TEXT = 10_000  # characters; the encoders read the first 77 tokens

# Older and other names of options, which scripts may still use.
OLDER_NAMES = {
    "guidance_scale": "cfg_scale",
    "steps": "num_inference_steps",
    "duration_s": "duration",
    "devices": "device",
}


@dataclass(frozen=True)
class Limits:
    """The range that a number must lie in, bounds included."""

    low: float
    high: float
    whole: bool = False

    @property
    def kind(self) -> str:
        return "whole number" if self.whole else "number"

    @property
    def allowed(self) -> str:
        """What a message advises to give."""
        return f"give a {self.kind} from {self.low:.10g} to {self.high:.10g}"

    def check(self, name: str, value: Any) -> Any:
        """Return ``value`` as a plain int or float; raises `InputError` that names the option ``name``."""
        # Real includes NumPy's numbers.
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{name} {describe(value)} is not a {self.kind}; {self.allowed}", option=name)
        try:
            number = float(value)
        except OverflowError:  # an int of hundreds of digits
            number = math.inf
        if not self.low <= number <= self.high:  # false for NaN too
            raise InputError(f"{name} {describe(value)} is out of range; {self.allowed}", option=name)
        if not self.whole:
            return number
        if not number.is_integer():  # 42.0 is a whole number, as in JSON Schema
            raise InputError(f"{name} {describe(value)} is not a {self.kind}; {self.allowed}", option=name)
        return int(number)


@dataclass(frozen=True)
class Choice:
    """The words that an option may have."""

    words: tuple[str, ...]

    def check(self, name: str, value: Any) -> Any:
        """Return ``value``; raises `InputError` that names the option ``name`` if it is not allowed."""
        if value not in self.words:
            raise InputError(
                f"{name} {describe(value)} is not known; give {' or '.join(self.words)}", option=name
            )
        return value


@dataclass(frozen=True)
class Switch:
    """An option that is True or False."""

    def check(self, name: str, value: Any) -> Any:
        """Return ``value``; raises `InputError` that names the option ``name`` if it is not a bool."""
        if not isinstance(value, bool):
            raise InputError(f"{name} {describe(value)} is not taken; give True or False", option=name)
        return value


STEPS = Limits(1, 100, whole=True)
CFG_SCALE = Limits(1, 20)
SEED = Limits(0, MAX_SEED, whole=True)
DURATION = Limits(MIN_DURATION_S, MAX_DURATION_S)
READERS = ("exact", "mmaudio")


@dataclass(frozen=True, init=False)
class Options:
    """How to sample; checked on construction.

    Raises:
        InputError: an option is out of range, of another type, unknown, or given under two names.
    """

    num_inference_steps: int | None = None  # None: the preset's
    cfg_scale: float | None = None  # 1 follows the conditions, more exaggerates them; None: the preset's
    seed: int | None = None  # None draws a seed, which the result holds
    duration: float | None = None  # s from the beginning of the video; without a video, of the sound
    # The following are options of some families only.
    mask_away_clip: bool = False  # the video sets the timing only; the texts say what is heard
    reader: str = "exact"  # how frames are picked; "mmaudio" picks them as MMAudio's own reader does

    def __init__(
        self,
        num_inference_steps: int | None = None,
        cfg_scale: float | None = None,
        seed: int | None = None,
        duration: float | None = None,
        mask_away_clip: bool = False,
        reader: str = "exact",
        **older: Any,
    ) -> None:
        given = {
            "num_inference_steps": num_inference_steps,
            "cfg_scale": cfg_scale,
            "seed": seed,
            "duration": duration,
            "mask_away_clip": mask_away_clip,
            "reader": reader,
        }
        if older:
            chosen = {name: value for name, value in given.items() if value != getattr(Options, name)}
            given |= by_current_names({**chosen, **older}, OPTIONS)
        for name, value in given.items():
            object.__setattr__(self, name, None if value is None else OPTIONS[name].check(name, value))


OPTIONS: dict[str, Limits | Choice | Switch] = {
    "num_inference_steps": STEPS,
    "cfg_scale": CFG_SCALE,
    "seed": SEED,
    "duration": DURATION,
    "mask_away_clip": Switch(),
    "reader": Choice(READERS),
}


def by_current_names(
    given: Mapping[str, Any], known: Collection[str], more: Collection[str] = ()
) -> dict[str, Any]:
    """Return keyword arguments with older names replaced by current ones.

    Args:
        given: keyword arguments under any name.
        known: the allowed current names.
        more: other arguments of the same call, for the message.

    Raises:
        InputError: a name is unknown, or an option is given under two names.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        current = name if name in known else OLDER_NAMES.get(name, name)
        if current not in known:
            meant = {each: each for each in (*more, *known)}
            meant |= {older: each for older, each in OLDER_NAMES.items() if each in known}
            near = difflib.get_close_matches(name, meant, 1)
            hint = f"did you mean {meant[near[0]]}? " if near else ""
            raise InputError(f"{name} is not an option; {hint}taken are {', '.join([*more, *known])}")
        if current in found:
            older = name if name != current else next(n for n in given if OLDER_NAMES.get(n) == current)
            raise InputError(f"{current} is given twice, also under its older name {older}; give it once")
        found[current] = value
    return found


@dataclass(frozen=True)
class Texts:
    """The texts of a request; checked on construction. A family reads some of them.

    Raises:
        InputError: a text is too long, not a str, or not valid Unicode.
    """

    caption: str = ""  # what is heard, in a few words
    cot: str = ""  # chain of thought: the sound step by step
    negative_prompt: str = ""  # what should not be heard

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if not isinstance(text, str):
                raise InputError(
                    f'{name} {describe(text)} is not a text; give a str, or "" for none', option=name
                )
            if len(text) > MAX_TEXT:
                raise InputError(
                    f"{name} has {len(text):,} characters; at most {MAX_TEXT:,} are allowed, "
                    "and the networks read only about the first 60 words",
                    option=name,
                )
            if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InputError(f"{name} is not valid Unicode text; give it in UTF-8", option=name)


def as_path(name: str, value: object, wanted: str = "the path of one file") -> Path:
    """Return ``value`` as a path; raises `InputError` if it is not one, such as a list or bytes."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise InputError(f"{name} {describe(value)} is not a path; give {wanted}, as str or pathlib.Path")
    return Path(path)


def check_progress(progress: object) -> None:
    """Raise `InputError` if ``progress`` is neither None nor callable."""
    if progress is not None and not callable(progress):
        raise InputError(
            f"progress {describe(progress)} is not a function; give one that is called as "
            "progress(stage, done, total), or None"
        )


def describe(value: object) -> str:
    """Return a value as a message shows it: short, on one line; other objects by their type."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, Real):
        try:
            text = str(value).removesuffix(".0")
        except ValueError:  # Python refuses to write an int of more than 4,300 digits
            text = "of thousands of digits"
        return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"
    if isinstance(value, str):
        return reprlib.repr(value)
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
