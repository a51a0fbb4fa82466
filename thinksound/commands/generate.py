"""`thinksound generate`: a video in, the same video with its sound out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..presets import PRESETS
from .arguments import add_model, number, whole
from .progress import Bars


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="make the sound of a video",
        description="Watch VIDEO, read the texts, and write the same video with its sound.",
        epilog='example: thinksound generate clip.mp4 --caption "Axe striking wood" '
        '--cot "Begin with three sharp blows, then the crack of splitting wood in an open forest."',
    )
    parser.set_defaults(run=run, interrupted="the video was not written")
    parser.add_argument(
        "video", type=Path, metavar="VIDEO", help="any file with moving pictures, 0.1 s to 3 minutes"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", type=Path, metavar="OUT.mp4", help="default: VIDEO_sound.mp4 in the current folder"
    )
    output.add_argument("--audio", type=Path, metavar="OUT.wav", help="also write the sound alone")
    output.add_argument(
        "--dump",
        type=Path,
        metavar="FILE.safetensors",
        help="also write every intermediate, to compare versions",
    )
    output.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes")
    sound = parser.add_argument_group("sound")
    sound.add_argument("--caption", default="", metavar="TEXT", help="what is heard, in a few words")
    sound.add_argument(
        "--cot",
        default="",
        metavar="TEXT",
        help="chain of thought: the sound step by step (default: the caption)",
    )
    sound.add_argument("--duration", type=number, metavar="S", help="use the first S seconds only")
    sound.add_argument(
        "--cfg-scale",
        type=number,
        metavar="X",
        help="classifier-free guidance, 1 to 20; larger follows texts and pictures more closely "
        f"(default: {', '.join(f'{preset.name} {preset.guidance_scale:g}' for preset in PRESETS.values())})",
    )
    sound.add_argument(
        "--steps",
        type=whole,
        default=24,
        metavar="N",
        help="sampling steps, 1 to 100; more is slower (default: 24)",
    )
    sound.add_argument(
        "--seed", type=whole, metavar="N", help="0 to 4294967295; the same seed gives the same sound"
    )
    add_model(parser)


def run(arguments: argparse.Namespace) -> None:
    from ..media.files import check_output
    from ..media.probe import probe
    from ..request import Options, check_texts

    options = Options(arguments.steps, arguments.cfg_scale, arguments.seed, arguments.duration)
    check_texts(arguments.caption, arguments.cot)
    video: Path = arguments.video
    probe(video)
    output: Path = arguments.output or Path(f"{video.stem}_sound.mp4")
    # Minutes of work hang on these paths: look at them before, not after.
    check_output(output, (".mp4",), (video,))
    if arguments.audio:
        check_output(arguments.audio, (".wav",), (video,))
    if arguments.dump:
        check_output(arguments.dump, (".safetensors",), (video,))

    from ..pipeline import load

    say = _silent if arguments.quiet else _say
    say(f"Loading {arguments.preset}")
    bars = Bars(arguments.quiet)
    try:
        pipeline = load(
            arguments.preset, arguments.weights, arguments.device, arguments.dtype, arguments.offload, bars
        )
        result = pipeline(video, arguments.caption, arguments.cot, options, bars)
    finally:
        bars.close()
    if arguments.dump:
        result.dump(arguments.dump)
    if arguments.audio:
        result.save(arguments.audio)
    for note in (*result.notes, *result.save(output)):
        say(f"Note: {note}")
    say("  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.timings.items()))
    say(f"Seed {result.seed}")
    for path in (output, arguments.audio, arguments.dump):
        if path:
            print(path)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _silent(message: str) -> None:
    pass
