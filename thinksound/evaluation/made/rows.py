"""The rows of the table: which sound is measured, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...errors import InputError

CONDITIONS = ("video", "text", "sync")
GUIDANCE_SCALES = (1.0, 3.0, 5.0, 7.0)
STEPS = (4, 8, 16, 24, 48)
FRAME_RATES = (12, 25, 60)
TEXTS = ("caption", "cot")


@dataclass(frozen=True)
class Recipe:
    """How a sound is made. Rows of one recipe are measured on the same sounds."""

    maker: Literal["truth", "codec", "model"] = "model"
    guidance_scale: float = 1.0
    steps: int = 1
    absent: tuple[str, ...] = ()  # of `CONDITIONS`: replaced by the network's null features
    texts: tuple[str, ...] = TEXTS  # the others are empty
    contradicted: tuple[str, ...] = ()  # of `TEXTS`: name other materials than the scene's
    fps: int | None = None  # the scene is drawn again at this frame rate; None keeps its own
    scrambled: bool = False  # the values of every tensor of the transformer are shuffled


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    recipe: Recipe
    swapped: bool = False  # each sound is measured against another clip, see `Sounds.partner`


def table_rows(guidance_scale: float, steps: int) -> tuple[Row, ...]:
    """Every row, in the order of the table.

    Args:
        guidance_scale: of all rows except those that compare guidance scales.
        steps: of all rows except those that compare step counts.
    """
    model = Recipe(guidance_scale=guidance_scale, steps=steps)
    truth, codec = Recipe("truth"), Recipe("codec")
    return (
        Row("truth", "truth", truth),
        Row("vae", "truth through the VAE", codec),
        Row("generated", "generated", model),
        Row("another", "another clip's sound", model, swapped=True),
        Row("no-video", "no video", replace(model, absent=("video", "sync"))),
        Row("no-text", "no text", replace(model, absent=("text",))),
        Row("no-sync", "no sync stream", replace(model, absent=("sync",))),
        Row("caption-only", "caption only", replace(model, texts=("caption",))),
        Row("cot-only", "chain of thought only", replace(model, texts=("cot",))),
        *(Row(f"fps-{fps}", f"{fps} frames per second", replace(model, fps=fps)) for fps in FRAME_RATES),
        *(
            Row(f"cfg-{scale:g}", f"guidance {scale:g}", replace(model, guidance_scale=scale))
            for scale in GUIDANCE_SCALES
        ),
        *(Row(f"steps-{count}", f"{count} steps", replace(model, steps=count)) for count in STEPS),
        Row("random", "random weights", replace(model, scrambled=True)),
        Row("truth-other-material", "truth of another material", replace(truth, contradicted=TEXTS)),
        Row("other-material", "texts say another material", replace(model, contradicted=TEXTS)),
        Row("caption-other", "only the caption says it", replace(model, contradicted=("caption",))),
        Row("cot-other", "only the chain of thought says it", replace(model, contradicted=("cot",))),
    )


def choose(rows: Sequence[Row], keys: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows with these keys, in the order of the table; all rows for None.

    Raises:
        InputError: no row has one of the keys.
    """
    if keys is None:
        return tuple(rows)
    known = [row.key for row in rows]
    for key in keys:
        if key not in known:
            raise InputError(f"row {key!r} is not known; give some of {', '.join(known)}")
    return tuple(row for row in rows if row.key in keys)
