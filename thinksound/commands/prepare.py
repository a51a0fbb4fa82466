"""`thinksound prepare`: encodes files or synthetic clips into features for training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from ..request import MAX_SEED
from ..synthetic.seeds import SPLITS
from .arguments import (
    add_model,
    add_number,
    add_output_folder,
    add_part,
    add_quiet,
    load_pipeline,
    number,
    whole,
)
from .progress import Bars

_EXAMPLES = """\
examples:
  thinksound prepare clips --captions clips.csv -o prepared
  thinksound prepare --preset tiny --made standard:1000000:500 -o prepared
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "prepare",
        help="encode clips for training",
        description="Encode videos with sound, or sounds alone, into features that training reads. Long "
        "files are cut into clips; what cannot be used is listed in OUT/skipped.csv. Started again, it "
        "goes on where it was.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, interrupted="finished parts are kept; start it again to go on")
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="holds the files")
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="TABLE",
        help="CSV with a header, or JSON Lines: the file (column file, path, video or id; the ending may be "
        "missing), caption, and if there is one the chain of thought (cot or caption_cot), which MMAudio "
        "does not read",
    )
    parser.add_argument(
        "--made",
        type=_made,
        action="append",
        default=[],
        metavar="SPLIT:FIRST:COUNT",
        help=f"synthetic clips ({' or '.join(SPLITS)}) of COUNT seeds from FIRST on; may be given several "
        "times",
    )
    add_output_folder(parser, "OUT")
    parser.add_argument(
        "--duration", type=number, metavar="S", help="seconds of a clip (default: 9; of MMAudio 8, of tiny 4)"
    )
    add_number(parser, "--shard-size", 128, "files of one shard, which is made whole or not at all")
    add_part(parser, "make the I-th of N parts, for several processes or machines on one folder")
    parser.add_argument(
        "--workers",
        type=whole,
        metavar="N",
        help="threads that read files ahead (default: 1 on a CPU, else up to 8)",
    )
    add_quiet(parser)
    add_model(parser)


def run(arguments: argparse.Namespace) -> None:
    # Checks that take a moment come before the networks are loaded.
    from ..data.clips import Source
    from ..data.sources import made_sources
    from ..data.tables import read_table

    if arguments.folder is None and not arguments.made:
        raise InputError("nothing to prepare: give FOLDER with --captions TABLE, or --made SPLIT:FIRST:COUNT")
    if (arguments.folder is None) != (arguments.captions is None):
        raise InputError(
            "FOLDER and --captions belong together: the table names the files in the folder and says what "
            "is heard in them"
        )
    sources: list[Source] = []
    for split, first, count in arguments.made:
        sources += made_sources(split, range(first, first + count))
    files = [] if arguments.folder is None else read_table(arguments.captions, arguments.folder)
    sources += files
    has_cot = any(file.cot not in ("", file.caption) for file in files)
    if arguments.shard_size < 1:
        raise InputError(f"--shard-size {arguments.shard_size}: give 1 or more")
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers}: give 1 or more")

    from ..data.prepare import SKIPPED, prepare_clips

    with Bars(arguments.quiet) as bars:
        pipeline = load_pipeline(arguments, bars)
        prepared = prepare_clips(
            pipeline,
            sources,
            arguments.output,
            duration_s=arguments.duration,
            shard_size=arguments.shard_size,
            part=arguments.part,
            workers=arguments.workers,
            progress=bars,
        )
    if not arguments.quiet:
        if "cot" not in pipeline.family.texts and has_cot:
            print(
                f"Note: cot is not read by {pipeline.preset.name}; the captions alone were encoded",
                file=sys.stderr,
            )
        if prepared.skipped:
            print(
                f"Note: {len(prepared.skipped)} skipped, the first {prepared.skipped[0].name}: "
                f"{prepared.skipped[0].reason}; all are in {arguments.output / SKIPPED}",
                file=sys.stderr,
            )
        print(f"{prepared.clips} clips", file=sys.stderr)
        if not prepared.complete:
            print(
                f"Note: {prepared.shards} of {prepared.shards_wanted} shards are there; the folder can be "
                "used when the other parts are made",
                file=sys.stderr,
            )
    print(arguments.output)


def _made(text: str) -> tuple[str, int, int]:
    parts = text.split(":")
    if len(parts) == 3 and parts[0] in SPLITS and parts[1].isdecimal() and parts[2].isdecimal():
        split, first, count = parts[0], int(parts[1]), int(parts[2])
        if count and first + count - 1 <= MAX_SEED:
            return split, first, count
    raise argparse.ArgumentTypeError(
        f"{text!r} is not SPLIT:FIRST:COUNT, such as standard:1000000:500; "
        f"splits are {' and '.join(SPLITS)}, seeds 0 to {MAX_SEED}"
    )
