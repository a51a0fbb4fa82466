"""The command line: arguments in, messages out, no logic.

Only the standard library is imported until a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .commands import evaluate, prepare, train
from .commands.arguments import add_model, add_weights_dir, as_typed, number, whole
from .commands.progress import Bars
from .errors import InputError, ThinkSoundError
from .presets import DEFAULT_PRESET, PRESETS
from .runtime.precision import DTYPES

if TYPE_CHECKING:
    from .synthetic.scene import Scene

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    quiet = getattr(arguments, "quiet", False)
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format="thinksound: %(message)s")
    # Asked to end, as by `timeout` or a shutdown, clean up as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except ThinkSoundError as error:
        print(f"thinksound: error: {as_typed(error, arguments)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        left = getattr(arguments, "interrupted", "nothing was written")
        print(f"\nthinksound: interrupted, {left}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `thinksound info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
    _add_generate(commands)
    _add_weights(commands)
    _add_info(commands)
    _add_make_data(commands)
    prepare.add_parser(commands)
    train.add_parser(commands)
    evaluate.add_parser(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="make the sound of a video",
        description="Watch VIDEO, read the texts, and write the same video with its sound.",
        epilog='example: thinksound generate clip.mp4 --caption "Axe striking wood" '
        '--cot "Begin with three sharp blows, then the crack of splitting wood in an open forest."',
    )
    parser.set_defaults(run=_generate, interrupted="the video was not written")
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


def _add_weights(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("weights", help="download, verify, convert or find the weights")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(run=run, interrupted="finished files stay; run it again to go on")
        add_weights_dir(action)
        action.add_argument("-q", "--quiet", action="store_true", help="no progress")
        return action

    def add_preset(action: argparse.ArgumentParser) -> None:
        action.add_argument(
            "--preset", choices=list(PRESETS), default=DEFAULT_PRESET, help=f"(default: {DEFAULT_PRESET})"
        )

    add_preset(
        add("download", _weights_download, "fetch what a preset lacks; an interrupted download resumes")
    )
    verify = add("verify", _weights_verify, "hash every file that is there and compare with its first use")
    verify.add_argument("--accept", action="store_true", help="take files that changed as the new truth")
    convert = add(
        "convert", _weights_convert, "write one safetensors file per network: smaller, faster to load"
    )
    add_preset(convert)
    convert.add_argument(
        "--dtype",
        choices=DTYPES[1:],
        default="bfloat16",
        help="number format (default: bfloat16; the VAE always stays in float32)",
    )
    add_preset(add("path", _weights_path, "print where each file is, or belongs"))


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "info",
        help="describe a video, or this installation",
        description="With VIDEO: streams, durations and the pictures that would be used. "
        "Without: devices, presets, weight files and versions.",
    )
    parser.set_defaults(run=_info)
    parser.add_argument("video", type=Path, nargs="?", metavar="VIDEO")
    add_weights_dir(parser)


def _add_make_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "make-data",
        help="make clips with known truth",
        description="Write made clips into DIR: an MP4 with its sound, the sound as WAV, a JSON file with "
        "truth and texts, and for all of them captions.csv, the table that `thinksound prepare` reads. "
        "Clip i is made from the seed S + i alone; files of the same name are replaced.",
    )
    parser.set_defaults(run=_make_data, interrupted="the files that are there are whole")
    parser.add_argument(
        "--split",
        choices=("standard", "hard"),
        default="standard",
        help="standard: one source; hard: two, with distractions (default: standard)",
    )
    parser.add_argument("--count", type=whole, default=10, metavar="N", help="clips to make (default: 10)")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="of the first clip (default: 0)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder, made if missing"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _generate(arguments: argparse.Namespace) -> None:
    from .media.files import check_output
    from .media.probe import probe
    from .request import Options, check_texts

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

    from .pipeline import load

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


def _make_data(arguments: argparse.Namespace) -> None:
    from .media.files import make_folder
    from .synthetic.clips import write_captions, write_clip
    from .synthetic.make import MAX_SEED, make_scene

    first, count = arguments.seed, arguments.count
    if count < 1:
        raise InputError(f"--count {count}: give 1 or more")
    if not 0 <= first <= MAX_SEED - count + 1:
        raise InputError(f"--seed {first}: {count} clips need a seed from 0 to {MAX_SEED - count + 1}")
    make_folder(arguments.output)
    write_captions(arguments.output, {})  # where it cannot be written, that is said before the work
    scenes: dict[str, Scene] = {}
    bars = Bars(arguments.quiet)
    try:
        for done, seed in enumerate(range(first, first + count)):
            bars("clips", done, count)
            scene = make_scene(arguments.split, seed)
            video, _, _ = write_clip(scene, arguments.output, f"{arguments.split}-{seed:06d}")
            scenes[video.name] = scene
        bars("clips", count, count)
    finally:
        bars.close()
        write_captions(arguments.output, scenes)
    print(arguments.output)


def _weights_download(arguments: argparse.Namespace) -> None:
    from .checkpoints.download import download

    folder = _weights_dir(arguments)
    bars = Bars(arguments.quiet)
    try:
        download(folder, PRESETS[arguments.preset].weights.values(), bars)
    finally:
        bars.close()
    if not arguments.quiet:
        print(f"{arguments.preset}: complete in {folder}")


def _weights_verify(arguments: argparse.Namespace) -> None:
    from .checkpoints.checksums import verify

    bars = Bars(arguments.quiet)
    try:
        rows = verify(_weights_dir(arguments), accept=arguments.accept, progress=bars)
    finally:
        bars.close()
    for row in rows:
        print(f"{row.status:<9} {row.sha256}  {row.size:>14,}  {row.path}")
    changed = [str(row.path) for row in rows if row.status == "changed"]
    if changed:
        raise InputError(
            f"changed since first use: {', '.join(changed)}; download again, or take them with --accept "
            "(bundled ones: restore them with git)"
        )


def _weights_convert(arguments: argparse.Namespace) -> None:
    import torch

    from .checkpoints.convert import convert
    from .runtime.precision import network_dtypes

    names = network_dtypes(arguments.dtype, on_gpu=True, bfloat16=True)
    weights = PRESETS[arguments.preset].weights
    dtypes = {key: getattr(torch, names[network]) for network, key in weights.items()}
    bars = Bars(arguments.quiet)
    try:
        rows = convert(_weights_dir(arguments), list(weights.values()), dtypes, bars)
    finally:
        bars.close()
    for row in rows:
        print(row)


def _weights_path(arguments: argparse.Namespace) -> None:
    for line in _weight_lines(_weights_dir(arguments), [arguments.preset]):
        print(line)


def _weights_dir(arguments: argparse.Namespace) -> Path:
    from .checkpoints.registry import default_weights_dir

    return arguments.weights if arguments.weights is not None else default_weights_dir()


def _weight_lines(folder: Path, presets: Sequence[str]) -> list[str]:
    """One line per file that the presets need: each copy that is here, or where it belongs."""
    from .checkpoints.cache import cached_files
    from .checkpoints.locate import is_complete, published_path
    from .checkpoints.registry import weight_file

    lines = []
    for key in dict.fromkeys(key for name in presets for key in PRESETS[name].weights.values()):
        file = weight_file(key)
        published, converted = published_path(folder, file), folder / file.converted_path
        here = [path for path in (published, converted) if is_complete(file, path)]
        lines += [f"here     {path}  ({file.licence})" for path in here]
        if not here:
            cached = {} if file.bundled else cached_files(file)
            lines.append(f"missing  {published}  ({file.licence})")
            if cached:
                found = next(iter(cached.values()))
                place = found.parent if file.is_folder else found
                lines.append(f"cached   {place}  (`thinksound weights download` links it)")
    return lines


def _info(arguments: argparse.Namespace) -> None:
    if arguments.video is not None:
        _describe_video(arguments.video)
    else:
        _describe_installation(_weights_dir(arguments))


def _describe_video(video: Path) -> None:
    from .media.decode import decode_video
    from .rates import MAX_DURATION_S, audio_sample_count, latent_frame_count, sync_feature_count

    decoded = decode_video(video, MAX_DURATION_S)
    info = decoded.info
    size = f"{info.width}x{info.height}" + (f", turned by {info.rotation} degrees" if info.rotation else "")
    claimed = "unknown" if info.container_duration_s is None else f"{info.container_duration_s:.3f} s"
    print(f"{video}: {info.container}")
    for stream in info.streams:
        print(f"  stream       {stream}")
    print(f"  picture      {info.codec} {info.pixel_format} {size}")
    print(f"  duration     {decoded.duration_s:.3f} s of presented pictures (the container says {claimed})")
    print(f"  pictures     {decoded.frame_count} presented, the first at {decoded.start_s:.3f} s")
    sync = f"{len(decoded.sync_frames)} at 25 fps ({sync_feature_count(decoded.duration_s)} sync features)"
    print(f"  used         {len(decoded.clip_frames)} at 8 fps (MetaCLIP), {sync}")
    label = "generates"
    for vae in dict.fromkeys(preset.vae for preset in PRESETS.values()):
        latents = latent_frame_count(decoded.duration_s, vae.sample_rate, vae.hop)
        samples = audio_sample_count(decoded.duration_s, vae.sample_rate)
        names = ", ".join(preset.name for preset in PRESETS.values() if preset.vae == vae)
        print(f"  {label:<12} {latents} latents, {samples:,} samples at {vae.sample_rate:,} Hz ({names})")
        label = ""
    if decoded.timeline.cut:
        print(f"  note         it goes on; at most {MAX_DURATION_S:g} s can be used")
    for note in decoded.notes:
        print(f"  note         {note}")


def _describe_installation(folder: Path) -> None:
    import platform
    from importlib.metadata import version

    from .runtime.placement import detect_machine

    gpus = detect_machine().gpus
    print(f"thinksound   {__version__}, Python {platform.python_version()}, {platform.platform()}")
    libraries = ("torch", "torchvision", "transformers", "av", "huggingface_hub")
    print(f"libraries    {', '.join(f'{name} {version(name)}' for name in libraries)}")
    print(f"devices      cpu{'' if gpus else ' (no CUDA GPU)'}")
    for index, gpu in enumerate(gpus):
        kind = "bfloat16" if gpu.bfloat16 else "float16"
        kind = kind if gpu.usable else "which the installed PyTorch is not built for"
        print(f"             cuda:{index} {gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, {kind}")
    for preset in PRESETS.values():
        millions = sum(preset.parameters.values()) / 1e6
        print(f"preset       {preset.name}: {preset.summary}, {millions:,.1f} M parameters")
    print(f"weights      {folder}")
    for line in _weight_lines(folder, list(PRESETS)):
        print(f"             {line}")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _silent(message: str) -> None:
    pass
