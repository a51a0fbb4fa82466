"""The command line: parses arguments, runs a command, prints its errors.

Exit status: 0 done; 1 an error, described on standard error; 2 a wrong command line; 130 interrupted.

No large library is imported until a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__
from .commands import evaluate, generate, info, make_data, prepare, train, weights
from .commands.arguments import Parser, as_typed
from .commands.streams import EXIT_ERROR, StandardStreams
from .errors import ThinkSoundError

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Raises:
        SystemExit: help was printed, or the command line is wrong.
    """
    with StandardStreams() as streams:
        try:
            arguments = build_parser().parse_args(argv)
        except SystemExit as ended:  # after printing help, or an error in the command line
            raise SystemExit(streams.settle(int(ended.code or 0))) from None
        return streams.settle(_run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    quiet = getattr(arguments, "quiet", False)
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format="thinksound: %(message)s")
    # SIGTERM, sent by `timeout` or a shutdown, cleans up as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        arguments.run(arguments)
    except ThinkSoundError as error:
        print(f"thinksound: error: {as_typed(error, arguments)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        left = getattr(arguments, "interrupted", "nothing was written")
        print(f"\nthinksound: interrupted, {left}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


class _Parser(Parser):
    """The outermost parser; explains when the first argument is an option or a file instead of a command."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        first = next(iter(sys.argv[1:] if args is None else args), "")
        if first.startswith("-") and first not in self._option_string_actions:
            self.error(f"{first}: the command comes first, as in `thinksound generate VIDEO {first} …`")
        if "." in first or "/" in first:
            self.error(f"{first} is no command; did you mean `thinksound generate {first}`?")
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="thinksound",
        description="Give a silent video its sound.",
        epilog="The published weights are for research and education only.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"thinksound {__version__}")
    # Any, because the type of this object is invariant in the parser class.
    commands: Any = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    generate.add_parser(commands)
    weights.add_parser(commands)
    info.add_parser(commands)
    make_data.add_parser(commands)
    prepare.add_parser(commands)
    train.add_parser(commands)
    evaluate.add_parser(commands)
    return parser
