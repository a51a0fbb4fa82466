"""`thinksound make-data`: writes synthetic clips with known truth."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import InputError
from ..request import MAX_SEED
from ..synthetic.seeds import SPLITS
from .arguments import add_number, add_output_folder, add_quiet, whole
from .progress import Bars

if TYPE_CHECKING:
    from ..synthetic.scene import Scene


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "make-data",
        help="make clips with known truth",
        description="Write synthetic clips into DIR: an MP4 with its sound, the sound as WAV, a JSON file "
        "with "
        "truth and texts, and for all of them captions.csv, the table that `thinksound prepare` reads. "
        "Clip i is made from the seed S + i alone; files of the same name are replaced.",
    )
    parser.set_defaults(run=run, interrupted="the files that are there are whole")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default=SPLITS[0],
        help="standard: one source; hard: two, with distractions (default: %(default)s)",
    )
    add_number(parser, "--count", 10, "clips to make")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="of the first clip (default: 0)")
    add_output_folder(parser, "DIR")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> None:
    from ..media.files import make_folder
    from ..synthetic.clips import write_captions, write_clip
    from ..synthetic.make import make_scene

    first, count = arguments.seed, arguments.count
    if count < 1:
        raise InputError(f"--count {count}: give 1 or more")
    if not 0 <= first <= MAX_SEED - count + 1:
        raise InputError(f"--seed {first}: {count} clips need a seed from 0 to {MAX_SEED - count + 1}")
    make_folder(arguments.output)
    write_captions(arguments.output, {})  # fails before the work if the folder is not writable
    scenes: dict[str, Scene] = {}
    try:
        with Bars(arguments.quiet) as bars:
            for done, seed in enumerate(range(first, first + count)):
                bars("clips", done, count)
                scene = make_scene(arguments.split, seed)
                video, _, _ = write_clip(scene, arguments.output, f"{arguments.split}-{seed:06d}")
                scenes[video.name] = scene
            bars("clips", count, count)
    finally:
        write_captions(arguments.output, scenes)
    print(arguments.output)
