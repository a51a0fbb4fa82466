"""`thinksound evaluate`: measures the sounds of a model, on synthetic clips or on files."""

from __future__ import annotations

import argparse
import sys

from ..errors import InputError
from ..evaluation.made.options import SECTIONS, EvaluationOptions
from ..evaluation.made.rows import table_rows
from ..request import CFG_SCALE, STEPS
from ..synthetic.seeds import SPLITS
from . import evaluate_folder
from .arguments import (
    add_model,
    add_number,
    add_output_folder,
    add_part,
    add_quiet,
    add_weights_dir,
    load_pipeline,
    whole,
    within,
)
from .progress import Bars

_EXAMPLES = """\
examples:
  thinksound evaluate made -o evaluation
  thinksound evaluate made --split standard --count 60 --rows truth generated --examples 3 -o look
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure the sounds of a model",
        description="Measure a model's sounds: against the known truth of synthetic clips, or by the field's "
        "metrics on files of your own.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_made(actions)
    evaluate_folder.add_parser(actions)
    _add_judges(actions)


def _add_made(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "made",
        help="on held-out synthetic clips, whose truth is known",
        description="Generate the sounds of held-out synthetic clips and measure onsets, kind, material, "
        "panning, level, buzz, ring-down, attacks, tones and pitch against the truth, and the level of "
        "videos in which nothing sounds. Writes OUT/table.md and OUT/results.json after every row. Started "
        "again, it goes on where it was.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_made, interrupted="finished rows are kept; start it again to go on")
    add_output_folder(parser, "OUT")
    parser.add_argument(
        "--split",
        choices=SECTIONS,
        action="append",
        help="one source, two with distractions, or videos in which nothing sounds; may be given several "
        "times (default: all)",
    )
    add_number(parser, "--count", EvaluationOptions.count, "clips of each split, standard and hard")
    add_number(parser, "--quiet-count", EvaluationOptions.quiet_count, "videos in which nothing sounds")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help=f"(default: all) {', '.join(row.key for row in table_rows(1.0, 1))}",
    )
    parser.add_argument(
        "--cfg-scale", type=within(CFG_SCALE), metavar="X", help="guidance, 1 to 20 (default: as the preset)"
    )
    parser.add_argument(
        "--steps",
        type=within(STEPS),
        default=EvaluationOptions.steps,
        metavar="N",
        help=f"sampling steps, {STEPS.low:g} to {STEPS.high:g} (default: %(default)s)",
    )
    add_number(parser, "--batch", EvaluationOptions.batch, "clips that are sampled together")
    add_part(
        parser,
        "make the I-th of N shares of the rows, for several processes on one folder; on a CPU with "
        "OMP_NUM_THREADS=1 each",
    )
    parser.add_argument(
        "--examples",
        type=whole,
        default=EvaluationOptions.examples,
        metavar="N",
        help="also write the N best and the N worst generated clips of each split, beside the truth",
    )
    add_quiet(parser)
    add_model(parser, "tiny")


def _add_judges(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "judges",
        help="train the judges of made data again",
        description="Train the networks that hear onsets, kinds and materials of made sounds, on true sounds "
        "alone; about ten minutes on one core. Writes WEIGHTS/judges.",
    )
    parser.set_defaults(run=run_judges, interrupted="the judges are as they were")
    add_weights_dir(parser)
    add_quiet(parser)


def run_made(arguments: argparse.Namespace) -> None:
    # Checks that take a moment come before the networks are loaded.
    from ..evaluation.made.evaluate import evaluate_made
    from ..evaluation.made.judges import judges_folder, load_judges

    options = evaluation_options(arguments)
    if options.examples:
        _need_matplotlib()
    judges = load_judges(judges_folder(arguments.weights))

    with Bars(arguments.quiet) as bars:
        pipeline = load_pipeline(arguments, bars)
        table = evaluate_made(pipeline, judges, arguments.output, options, bars)
    print(table.read_text(encoding="utf-8"), end="")
    if not arguments.quiet:
        print(table, file=sys.stderr)


def evaluation_options(arguments: argparse.Namespace) -> EvaluationOptions:
    """Return the options that the arguments of ``evaluate made`` describe."""
    return EvaluationOptions(
        splits=tuple(arguments.split or SECTIONS),
        count=arguments.count,
        quiet_count=arguments.quiet_count,
        rows=None if arguments.rows is None else tuple(arguments.rows),
        cfg_scale=arguments.cfg_scale,
        steps=arguments.steps,
        batch=arguments.batch,
        part=arguments.part,
        examples=arguments.examples,
    )


def run_judges(arguments: argparse.Namespace) -> None:
    from ..checkpoints.locate import weights_folder
    from ..evaluation.made.judge_training import train_judges
    from ..evaluation.made.judges import FOLDER

    folder = weights_folder(arguments.weights) / FOLDER
    with Bars(arguments.quiet) as bars:
        record = train_judges(folder, progress=bars)
    for split in SPLITS:
        print(f"{split:<9} " + "  ".join(f"{name} {value:.3f}" for name, value in record[split].items()))
    print(folder)


def _need_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise InputError("--examples needs matplotlib; pip install 'thinksound-cog[evaluation]'")
