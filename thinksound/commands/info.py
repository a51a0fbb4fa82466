"""`thinksound info`: describes a video, or the installation."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import __version__
from ..checkpoints.locate import weights_folder
from ..errors import printable
from ..presets import PRESETS
from .arguments import add_weights_dir
from .weights import weight_lines


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "info",
        help="describe a video, or this installation",
        description="With VIDEO: streams, durations and the pictures that would be used. "
        "Without: devices, presets, weight files and versions.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("video", nargs="?", metavar="VIDEO")
    add_weights_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.video is not None:
        _describe_video(arguments.video)
    else:
        _describe_installation(weights_folder(arguments.weights))


def _describe_video(video: str) -> None:
    from ..families.find import family_of
    from ..media.decode import decode_video
    from ..rates import MAX_DURATION_S

    families = [family_of(preset) for preset in PRESETS.values()]
    decoded = decode_video(video, families[0].views, MAX_DURATION_S)
    info = decoded.info
    size = f"{info.width}x{info.height}" + (f", turned by {info.rotation} degrees" if info.rotation else "")
    claimed = "unknown" if info.container_duration_s is None else f"{info.container_duration_s:.3f} s"
    print(f"{printable(video)}: {info.container}")
    for stream in info.streams:
        print(f"  stream       {stream}")
    print(f"  picture      {info.codec} {info.pixel_format} {size}")
    print(f"  duration     {decoded.duration_s:.3f} s of presented pictures (the container says {claimed})")
    print(f"  pictures     {decoded.frame_count} presented, the first at {decoded.start_s:.3f} s")
    used = (f"{len(decoded.frames[view.name])} at {view.fps} fps" for view in families[0].views)
    print(f"  used         {', '.join(used)}")
    generated: dict[str, list[str]] = {}  # description of the sound to the presets that it applies to
    for family in families:
        latents, samples = (
            count(decoded.duration_s) for count in (family.sound.latent_length, family.sound.sample_count)
        )
        words = f"{latents} latents, {samples:,} samples at {family.sound.sample_rate:,} Hz"
        generated.setdefault(words, []).append(family.preset.name)
    label = "generates"
    for words, names in generated.items():
        print(f"  {label:<12} {words} ({', '.join(names)})")
        label = ""
    if decoded.timeline.cut:
        print(f"  note         it goes on; at most {MAX_DURATION_S:g} s can be used")
    for note in decoded.notes:
        print(f"  note         {note}")


def _describe_installation(folder: Path) -> None:
    import platform
    from importlib.metadata import version

    from ..runtime.placement import detect_machine

    gpus = detect_machine().gpus
    print(f"thinksound   {__version__}, Python {platform.python_version()}, {platform.platform()}")
    libraries = ("torch", "transformers", "av", "huggingface_hub")
    print(f"libraries    {', '.join(f'{name} {version(name)}' for name in libraries)}")
    print(f"devices      cpu{'' if gpus else ' (no CUDA GPU)'}")
    for index, gpu in enumerate(gpus):
        kind = "bfloat16" if gpu.bfloat16 else "float16"
        kind = kind if gpu.usable else "which the installed PyTorch is not built for"
        print(f"             cuda:{index} {gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, {kind}")
    for preset in PRESETS.values():
        millions = preset.parameters / 1e6
        print(f"preset       {preset.name}: {preset.summary}, {millions:,.1f} M parameters")
        print(f"             by default --cfg-scale {preset.guidance_scale:g} --steps {preset.steps}")
    print(f"weights      {folder}")
    for line in weight_lines(folder, list(PRESETS)):
        print(f"             {line}")
