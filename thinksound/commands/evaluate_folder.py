"""`thinksound evaluate folder`: common metrics on files, against true sounds, captions and videos."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import WeightsError
from .arguments import add_one_device, add_quiet, add_weights_dir
from .progress import Bars

_LISTED = 20  # skipped clips that are printed; the result lists all

if TYPE_CHECKING:
    from ..data.clips import Skipped
    from ..evaluation.files.folder import Evaluation

_DESCRIPTION = """\
Score the sounds, or videos with sound, in GENERATED. Files belong together that have the same name before
the ending. What cannot be used is skipped and listed in the result.

metrics:
  fd       Fréchet distance to the reference, AudioSet tagger (small is good)
  fd-clap  the same in CLAP's space
  kl       divergence of the tagger's classes from the reference's (small is good)
  is       inception score of the tagger's classes (large is good)
  clap     cosine of sound and caption in CLAP's space (large is good)
  desync   seconds out of step as Synchformer hears it (small is good)
"""
_EXAMPLE = """\
example:
  thinksound evaluate folder generated --reference clips --videos clips --captions clips.csv -o results.json
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "folder",
        help="score files by the field's metrics",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("generated", type=Path, metavar="GENERATED", help="folder of what is scored")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="folder of the true sounds")
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="TABLE",
        help="CSV with a header, or JSON Lines: the file in GENERATED (column file, path, video or id; the "
        "ending may be missing) and caption",
    )
    parser.add_argument(
        "--videos", type=Path, metavar="DIR", help="folder of the pictures of files that have none"
    )
    parser.add_argument(
        "--metrics",
        metavar="M,M",
        help="comma-separated (default: all that the given folders and tables allow)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="RESULTS.json", help="where the numbers go"
    )
    parser.add_argument(
        "--download", action="store_true", help="first fetch what is missing of the networks that listen"
    )
    add_one_device(parser)
    add_weights_dir(parser)
    add_quiet(parser, "no progress and no notes")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from ..checkpoints.locate import weights_folder
    from ..evaluation.files.folder import (
        choose_metrics,
        evaluate_clips,
        load_networks,
        network_keys,
        write_results,
    )
    from ..evaluation.files.pairing import find_clips
    from ..media.files import check_output
    from ..runtime.placement import detect_machine, memory_errors, one_device

    # Checks that take a moment come before the networks are loaded.
    check_output(arguments.output, (".json",))
    clips, unpaired = find_clips(
        arguments.generated, arguments.reference, arguments.captions, arguments.videos
    )
    wanted = arguments.metrics
    if wanted is not None:
        wanted = [name.strip() for name in wanted.split(",") if name.strip()]
    metrics = choose_metrics(wanted, clips)
    device = torch.device(one_device(detect_machine(), arguments.device))
    weights_dir = weights_folder(arguments.weights)
    with Bars(arguments.quiet) as bars:
        _complete(weights_dir, network_keys(metrics), arguments.download, bars)
        with memory_errors("--device cpu, or a GPU with more memory"):
            networks = load_networks(weights_dir, metrics, device, bars)
            evaluation = evaluate_clips(clips, metrics, networks, bars)
    write_results(arguments.output, evaluation, unpaired)
    if not arguments.quiet:
        _report(evaluation, [*unpaired, *evaluation.skipped], arguments.output)
    for name, numbers in evaluation.metrics.items():
        values = "  ".join(f"{key} {_text(value)}" for key, value in numbers.items())
        print(f"{name:<8} {values}")
    print(arguments.output)


def _complete(weights_dir: Path, keys: list[str], fetch: bool, bars: Bars) -> None:
    """Download missing weights if ``fetch``.

    Raises:
        WeightsError: weights are missing; the message says how to get them.
    """
    from ..checkpoints.download import download
    from ..checkpoints.locate import describe_missing, missing

    if fetch:
        download(weights_dir, keys, bars)
    absent = missing(weights_dir, keys)
    if absent:
        remedy = "run the same command with --download"
        raise WeightsError(describe_missing(weights_dir, absent, remedy))


def _report(evaluation: Evaluation, skipped: list[Skipped], output: Path) -> None:
    for note in evaluation.notes:
        print(f"Note: {note}", file=sys.stderr)
    for each in skipped[:_LISTED]:
        print(f"Skipped: {each.name}: {each.reason}", file=sys.stderr)
    if len(skipped) > _LISTED:
        print(f"Skipped: {len(skipped)} in all; {output} lists them", file=sys.stderr)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"
