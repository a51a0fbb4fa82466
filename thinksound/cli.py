"""The command line: arguments in, messages out, no logic.

Exit status: 0 done; 1 an error, which standard error names; 2 a wrong command line; 130 interrupted.

Only the standard library is imported until a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from . import __version__
from .commands import evaluate, generate, info, make_data, prepare, train, weights
from .commands.arguments import as_typed
from .commands.streams import EXIT_ERROR, StandardStreams
from .errors import ThinkSoundError

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with StandardStreams() as streams:
        try:
            arguments = build_parser().parse_args(argv)
        except SystemExit as ended:  # help was printed, or what is wrong with the command line
            raise SystemExit(streams.settle(int(ended.code or 0))) from None
        return streams.settle(_run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    quiet = getattr(arguments, "quiet", False)
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format="thinksound: %(message)s")
    # Asked to end, as by `timeout` or a shutdown, clean up as after Ctrl-C.
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thinksound",
        description="Give a silent video its sound.",
        epilog="The published weights are for research and education only.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"thinksound {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    generate.add_parser(commands)
    weights.add_parser(commands)
    info.add_parser(commands)
    make_data.add_parser(commands)
    prepare.add_parser(commands)
    train.add_parser(commands)
    evaluate.add_parser(commands)
    return parser
