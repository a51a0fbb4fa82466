"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..presets import DEFAULT_PRESET, PRESETS
from ..runtime.precision import DTYPES


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which networks, from where, and where they run."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--preset",
        choices=list(PRESETS),
        default=DEFAULT_PRESET,
        help=f"(default: {DEFAULT_PRESET}); tiny is bundled: random weights that prove the pipeline",
    )
    add_weights_dir(model)
    model.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto, cpu, cuda, cuda:N or cuda:0,cuda:1 (default: auto)",
    )
    model.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="number format of the networks (default: auto)"
    )
    model.add_argument(
        "--offload", action="store_true", help="one network at a time on the GPU: slower, least memory"
    )


def add_weights_dir(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of weight files (default: $THINKSOUND_WEIGHTS or weights/)",
    )


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
