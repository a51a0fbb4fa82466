"""`thinksound info`: what a video holds, or what is installed."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import __version__
from ..errors import printable
from ..presets import PRESETS
from .arguments import add_weights_dir
from .weights import weight_lines, weights_dir


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
        _describe_installation(weights_dir(arguments))


def _describe_video(video: str) -> None:
    from ..media.decode import decode_video
    from ..rates import MAX_DURATION_S, audio_sample_count, latent_frame_count, sync_feature_count

    decoded = decode_video(video, MAX_DURATION_S)
    info = decoded.info
    size = f"{info.width}x{info.height}" + (f", turned by {info.rotation} degrees" if info.rotation else "")
    claimed = "unknown" if info.container_duration_s is None else f"{info.container_duration_s:.3f} s"
    print(f"{printable(video)}: {info.container}")
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

    from ..runtime.placement import detect_machine

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
    for line in weight_lines(folder, list(PRESETS)):
        print(f"             {line}")
