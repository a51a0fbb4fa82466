"""`thinksound generate`: writes videos with generated sound."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, ThinkSoundError, printable
from ..presets import PRESETS, get_preset
from ..request import CFG_SCALE, DURATION, MAX_SEED, READERS, SEED, STEPS, Options, Texts
from .arguments import add_model, add_quiet, as_typed, load_pipeline, within
from .progress import Bars

if TYPE_CHECKING:
    from ..families.protocol import Family
    from ..pipeline import Pipeline


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="make the sound of a video",
        description="Watch VIDEO, read the texts, and write the same video with its sound. Several videos "
        "get theirs one after the other, with the same texts; one that fails is named, and the others go on.",
        epilog='example: thinksound generate clip.mp4 --caption "Axe striking wood" '
        '--cot "Begin with three sharp blows, then the crack of splitting wood in an open forest."',
    )
    parser.set_defaults(run=run, refuse=parser.error, interrupted="the result was not written")
    parser.add_argument(
        "videos",
        nargs="*",
        metavar="VIDEO",
        help="any file with moving pictures, 0.1 s to 3 minutes; the mmaudio presets do without one",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="OUT.mp4",
        help="a file, which is replaced, or a folder (OUT/ is made if missing); default: VIDEO_sound.mp4 in "
        "the current folder, or VIDEO_sound-2.mp4 where that exists",
    )
    parser.add_argument("--image", metavar="IMAGE", help="a still image instead of a video (mmaudio presets)")
    output.add_argument("--audio", type=Path, metavar="OUT.wav", help="also write the sound alone")
    output.add_argument(
        "--dump",
        type=Path,
        metavar="FILE.safetensors",
        help="also write every intermediate, to compare versions",
    )
    add_quiet(output, "no progress and no notes")
    sound = parser.add_argument_group("sound")
    sound.add_argument("--caption", default="", metavar="TEXT", help="what is heard, in a few words")
    sound.add_argument(
        "--cot",
        default="",
        metavar="TEXT",
        help="chain of thought: the sound step by step (default: the caption); thinksound presets and tiny",
    )
    sound.add_argument(
        "--negative-prompt",
        default="",
        metavar="TEXT",
        help="what is not to be heard (mmaudio presets)",
    )
    sound.add_argument(
        "--duration",
        type=within(DURATION),
        metavar="S",
        help="use the first S seconds only; without a video, the length of the sound (default: 8)",
    )
    sound.add_argument(
        "--cfg-scale",
        type=within(CFG_SCALE),
        metavar="X",
        help="classifier-free guidance, 1 to 20; larger follows texts and pictures more closely "
        f"(default: {', '.join(f'{preset.name} {preset.guidance_scale:g}' for preset in PRESETS.values())})",
    )
    sound.add_argument(
        "--steps",
        type=within(STEPS),
        metavar="N",
        help="sampling steps, 1 to 100; more is slower "
        f"(default: {', '.join(f'{preset.name} {preset.steps}' for preset in PRESETS.values())})",
    )
    sound.add_argument(
        "--seed",
        type=within(SEED),
        metavar="N",
        help=f"0 to {MAX_SEED}; the same seed gives the same sound",
    )
    sound.add_argument(
        "--mask-away-clip",
        action="store_true",
        help="the video sets the timing alone, what is heard is up to the text (mmaudio presets)",
    )
    sound.add_argument(
        "--reader",
        choices=READERS,
        default=Options.reader,
        help="how frames are picked; mmaudio: as MMAudio's own reader does, with its rounding "
        "(mmaudio presets; default: exact)",
    )
    add_model(parser)


def run(arguments: argparse.Namespace) -> None:
    from ..media.files import make_folder
    from ..media.probe import probe

    options = Options(
        arguments.steps,
        arguments.cfg_scale,
        arguments.seed,
        arguments.duration,
        arguments.mask_away_clip,
        arguments.reader,
    )
    texts = Texts(arguments.caption, arguments.cot, arguments.negative_prompt)
    folder = _folder(arguments.output)
    if not arguments.videos:
        _without_video(arguments, options, texts, folder)
        return
    if arguments.image is not None:
        raise InputError(f"--image {arguments.image}: a video is given too; give one of them")
    videos = _expand(arguments.videos)
    several = len(videos) > 1
    if several:
        _check_several(arguments, videos, folder)
    say = _silent if arguments.quiet else _say
    for result in _own_results(videos):
        videos.remove(result)
        say(f"Note: {result} is left out, a result of thinksound beside its video; give it alone to use it")
    failed: list[str] = []

    def succeeds(video: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except ThinkSoundError as error:
            if not several:
                raise
            print(f"thinksound: error: {as_typed(error, arguments)}", file=sys.stderr)
            failed.append(video)
            return False
        return True

    # Inputs and outputs are checked first, because generating takes minutes.
    ready = [video for video in videos if succeeds(video, partial(probe, video))]
    if ready:
        _family(arguments, options, texts)
    if ready and folder is not None:
        make_folder(folder)
    ready = [video for video in ready if succeeds(video, partial(_check_outputs, arguments, folder, video))]
    if ready:
        say(f"Loading {arguments.preset}")
        pipeline = _load(arguments)
        for number, video in enumerate(ready, 1):
            if several:
                say(f"{video} ({number} of {len(ready)})")
            succeeds(video, partial(_generate, arguments, pipeline, options, folder, video))
    if failed:
        raise ThinkSoundError(f"{len(failed)} of {len(videos)} videos got no sound: {', '.join(failed)}")


def _family(arguments: argparse.Namespace, options: Options, texts: Texts) -> Family:
    """Return the family of the preset; raises `InputError` if it does not take what was asked for."""
    from ..families.find import family_of

    family = family_of(get_preset(arguments.preset))
    family.check_options(options, has_video=bool(arguments.videos))
    family.settle_texts(texts)
    return family


def _without_video(
    arguments: argparse.Namespace, options: Options, texts: Texts, folder: Path | None
) -> None:
    """Generate the sound of a text or of a still image."""
    from ..media.audio import SOUND_FORMATS
    from ..media.files import check_output, make_folder
    from ..media.still import read_image

    if _family(arguments, options, texts).needs_video:
        arguments.refuse(f"{arguments.preset} needs a video; the mmaudio presets do with an image or a text")
    if not arguments.caption.strip() and arguments.image is None:
        arguments.refuse("nothing to make a sound of; give a VIDEO, an --image or a --caption")
    if arguments.image is not None:
        read_image(arguments.image)
    if folder is not None:
        make_folder(folder)
    output = _output(arguments, folder, None)
    if arguments.image is None and output.suffix.lower() == ".mp4":
        raise InputError(f"-o {output}: there is no picture to show; give a name that ends in .wav or .flac")
    check_output(output, (*SOUND_FORMATS, *([".mp4"] if arguments.image is not None else [])))
    _check_others(arguments, ())
    say = _silent if arguments.quiet else _say
    say(f"Loading {arguments.preset}")
    _generate(arguments, _load(arguments), options, folder, None)


def _expand(names: Sequence[str]) -> list[str]:
    """Replace patterns among the names by the files that match; Windows shells leave that to the program."""
    from ..media.files import exists

    videos: list[str] = []
    for name in names:
        matches: list[str] = []
        if ("*" in name or "?" in name) and not exists(Path(name)):
            matches = sorted(glob.glob(name))  # noqa: PTH207 (Path.glob takes no absolute patterns)
        videos += matches or [name]
    return videos


def _own_results(videos: Sequence[str]) -> list[str]:
    """Return the videos that are results of others among them; ``*.mp4`` matches these the second time."""
    from ..media.probe import is_own_result

    sources = "|".join(re.escape(Path(video).stem) for video in videos)
    named = re.compile(rf"(?:{sources})_sound(?:-[0-9]+)?[.]mp4")
    return [video for video in videos if named.fullmatch(Path(video).name) and is_own_result(video)]


def _folder(output: str | None) -> Path | None:
    """Return the folder in which results are named after their videos; None if ``output`` is a file."""
    from ..media.files import exists

    if output is None:
        return Path()
    if not output:
        raise InputError("-o: the name is empty; give a file or a folder")
    path = Path(output)
    is_folder = output.endswith(("/", os.sep)) or (exists(path) and path.is_dir())
    return path if is_folder else None


def _check_several(arguments: argparse.Namespace, videos: Sequence[str], folder: Path | None) -> None:
    from ..media.files import exists

    for video in videos:
        # Without quotes, the first word of a text becomes the caption, and the other words become videos.
        if not Path(video).suffix and not exists(Path(video)):
            raise InputError(
                f'{video}: no such file; a text of several words is one argument in quotes: --caption "a dog"'
            )
    if folder is None:
        raise InputError(
            f"-o {arguments.output}: {len(videos)} videos were given; give a folder, such as -o results/"
        )
    for option in ("audio", "dump"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} takes one video, and {len(videos)} were given; run them one by one")


def _output(arguments: argparse.Namespace, folder: Path | None, video: str | None) -> Path:
    from ..media.files import free_name

    if folder is None:
        return Path(arguments.output)
    return free_name(folder / _result_name(arguments, video))


def _result_name(arguments: argparse.Namespace, video: str | None) -> str:
    source = video if video is not None else arguments.image
    return "sound.wav" if source is None else f"{Path(source).stem}_sound.mp4"


def _check_outputs(arguments: argparse.Namespace, folder: Path | None, video: str) -> None:
    from ..media.files import check_output

    inputs = (Path(video),)
    check_output(_output(arguments, folder, video), (".mp4",), inputs)
    _check_others(arguments, inputs)


def _check_others(arguments: argparse.Namespace, inputs: Sequence[Path]) -> None:
    from ..media.audio import SOUND_FORMATS
    from ..media.files import check_output

    if arguments.audio is not None:
        check_output(arguments.audio, tuple(SOUND_FORMATS), inputs)
    if arguments.dump is not None:
        check_output(arguments.dump, (".safetensors",), inputs)


def _load(arguments: argparse.Namespace) -> Pipeline:
    with Bars(arguments.quiet) as bars:
        return load_pipeline(arguments, bars)


def _generate(
    arguments: argparse.Namespace,
    pipeline: Pipeline,
    options: Options,
    folder: Path | None,
    video: str | None,
) -> None:
    say = _silent if arguments.quiet else _say
    with Bars(arguments.quiet) as bars:
        result = pipeline(
            video,
            arguments.caption,
            arguments.cot,
            options,
            bars,
            arguments.negative_prompt,
            arguments.image,
        )
    if arguments.dump is not None:
        result.dump(arguments.dump)
    if arguments.audio is not None:
        result.save(arguments.audio)
    # Chosen only now, because another process may have taken the name meanwhile.
    output = _output(arguments, folder, video)
    notes = (*result.notes, *result.save(output))
    arguments.interrupted = f"the last result is {output}"
    for note in notes:
        say(f"Note: {note}")
    if folder is not None and output != (kept := folder / _result_name(arguments, video)):
        say(f"Note: {kept} exists and was kept, the new result is {output}; -o {kept} would replace it")
    say("  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.timings.items()))
    say(f"Seed {result.seed}")
    for path in (output, arguments.audio, arguments.dump):
        if path is not None:
            # A script needs the exact name; on a terminal, control characters must have no effect.
            print(printable(str(path)) if sys.stdout.isatty() else path)
    sys.stdout.flush()


def _say(message: str) -> None:
    print(printable(message), file=sys.stderr)


def _silent(message: str) -> None:
    pass
