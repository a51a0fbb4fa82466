"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import InputError, ThinkSoundError
from ..presets import DEFAULT_PRESET, PRESETS
from ..progress import Progress
from ..request import OLDER_NAMES, Limits
from ..runtime.precision import DTYPES

if TYPE_CHECKING:
    from ..pipeline import Pipeline

# Options whose flag differs from their name in Python.
_FLAGS = {"num_inference_steps": "steps", "duration_s": "duration", "ema_decay": "ema", "clip_norm": "clip"}
# Names that the same options have in other programs, for "did you mean".
_ELSEWHERE = {**OLDER_NAMES, **_FLAGS, "prompt": "caption", "text": "caption"}


class Parser(argparse.ArgumentParser):
    """A parser that suggests the option that was meant instead of an unknown one."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return found, unknown

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        options = [word for word in unknown if word.startswith("-") and word != "-"]
        if not options:
            self.error(f"{' '.join(unknown)}: not expected here; see --help")
        typed = options[0].partition("=")[0]
        words = typed.strip("-").lower().replace("-", "_")
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        named = f"--{_ELSEWHERE.get(words, words)}".replace("_", "-")
        alike = difflib.get_close_matches(named, flags, 1) if typed.startswith("--") else []
        near = [named] if named in flags else alike
        self.error(f"{typed} is not an option; {f'did you mean {near[0]}?' if near else 'see --help'}")


def add_model(parser: argparse.ArgumentParser, preset: str = DEFAULT_PRESET) -> None:
    """Add the options that say which networks are loaded, from where and onto which device.

    ``preset`` is the default of ``--preset``.
    """
    model = parser.add_argument_group("model")
    add_preset(model, preset, "; tiny is bundled: small, trained on synthetic clips")
    add_weights_dir(model)
    model.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto, cpu, cuda, cuda:N or cuda:0,cuda:1 (default: auto)",
    )
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="of the networks (default: auto)")
    model.add_argument(
        "--offload", action="store_true", help="one network at a time on the GPU: slower, least memory"
    )


def load_pipeline(arguments: argparse.Namespace, progress: Progress) -> Pipeline:
    """Load the networks that the options of `add_model` name."""
    from ..loading import load

    return load(
        arguments.preset,
        arguments.weights,
        arguments.device,
        arguments.dtype,
        arguments.offload,
        progress,
    )


def add_preset(parser: argparse._ActionsContainer, default: str = DEFAULT_PRESET, more: str = "") -> None:
    """Add ``--preset``; the help says ``more`` after the default."""
    parser.add_argument(
        "--preset", choices=list(PRESETS), default=default, help=f"(default: %(default)s){more}"
    )


def add_one_device(parser: argparse._ActionsContainer) -> None:
    """Add ``--device`` for a command that computes on one device."""
    parser.add_argument(
        "--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )


def add_output_folder(parser: argparse._ActionsContainer, metavar: str, what: str = "folder") -> None:
    """Add ``--output``, a required folder."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar=metavar, help=f"{what}, made if missing"
    )


def add_quiet(parser: argparse._ActionsContainer, what: str = "no progress") -> None:
    """Add ``--quiet``; ``what`` says what it leaves out, for the help."""
    parser.add_argument("-q", "--quiet", action="store_true", help=what)


def add_part(parser: argparse._ActionsContainer, what: str) -> None:
    """Add ``--part``, which divides work among processes with one folder; ``what`` is the help."""
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help=what)


def add_number(parser: argparse._ActionsContainer, flag: str, default: float | None, what: str) -> None:
    """An option that is a number, a whole one where its default is one; the help says ``what`` it is.

    Where the default depends on other options it is None, and ``what`` tells it.
    """
    is_whole = isinstance(default, int)
    shown = "" if default is None else f" (default: %(default){'s' if is_whole else 'g'})"
    parser.add_argument(
        flag,
        type=whole if is_whole else number,
        default=default,
        metavar="N" if is_whole else "X",
        help=f"{what}{shown}",
    )


def add_weights_dir(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of weight files (default: $THINKSOUND_WEIGHTS, else weights/ of a checkout, "
        "else thinksound/weights in the user's cache)",
    )


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def whole(text: str) -> int:
    """Read a whole number, also if it is written as 24.0."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        if float(text).is_integer():  # false for infinity and NaN
            return int(float(text))
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")


def within(limits: Limits) -> Callable[[str], float]:
    """Return a reader of numbers whose error message gives the limits; `Options` checks them."""

    def read(text: str) -> float:
        try:
            return whole(text) if limits.whole else number(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}; {limits.allowed}") from None

    return read


def as_typed(error: ThinkSoundError, arguments: argparse.Namespace) -> str:
    """Return the message of an error, with the option spelt as on the command line.

    Only options of this command are respelt: a caption in a table was not typed as ``--caption``.
    """
    message = str(error)
    if isinstance(error, InputError) and error.option:
        name = _FLAGS.get(error.option, error.option)
        if hasattr(arguments, name):
            return f"--{name.replace('_', '-')}{message.removeprefix(error.option)}"
    return message


def part(text: str) -> tuple[int, int]:
    """Read a share of the work, such as ``2/4``, as index and count."""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index), int(count)
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/4 for the first of four parts")
