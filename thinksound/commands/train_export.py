"""`thinksound train export` and `train merge`: write trained weights for the other commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..training.options import START_PRESET, Start
from .arguments import add_output_folder, add_preset


def add_parsers(networks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_export(networks)
    _add_merge(networks)


def add_source(start: argparse._ActionsContainer) -> None:
    """Add ``--preset`` and ``--from``: the weights at the first step (`training.options.Start`)."""
    add_preset(start)
    start.add_argument(
        "--from",
        dest="source",
        default=START_PRESET,
        metavar="WHAT",
        help="preset: its weights; scratch: random ones; or a checkpoint or safetensors file of the "
        "preset's size (default: %(default)s)",
    )


def _add_export(networks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = networks.add_parser(
        "export",
        help="write what a run has trained as weights for the other commands",
        description="Write the averaged weights of a run, an adapter merged, into a folder that "
        "`thinksound generate --weights DIR` takes; the preset's other networks are linked there.",
    )
    parser.set_defaults(run=_export, interrupted="nothing was written")
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--last", action="store_true", help="the weights of the last step instead of the averaged ones"
    )
    parser.add_argument(
        "--standardise",
        action="store_true",
        help="of a VAE: give its latents deviation one, for a transformer trained on them from scratch; one "
        "that is trained already needs them as they are; MMAudio's transformer does so itself",
    )
    _add_export_output(parser)


def _add_merge(networks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = networks.add_parser(
        "merge",
        help="merge an adapter into the weights that it was trained on",
        description="Write the transformer with an adapter in peft's format added to its weights, as "
        "`train export` does for a run.",
    )
    parser.set_defaults(run=_merge, interrupted="nothing was written")
    parser.add_argument("folder", type=Path, metavar="ADAPTER", help="folder with adapter_config.json")
    add_source(parser)
    _add_export_output(parser)


def _add_export_output(parser: argparse.ArgumentParser) -> None:
    add_output_folder(parser, "DIR", "folder of weights")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the file; every one loads everywhere (default: float32)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of the preset's other networks (default: that of the run, or the usual one)",
    )


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from ..training.export import export_run

    written = export_run(
        arguments.folder,
        arguments.output,
        arguments.weights,
        getattr(torch, arguments.dtype),
        averaged=not arguments.last,
        standardised=arguments.standardise,
    )
    _say_written(written)


def _merge(arguments: argparse.Namespace) -> None:
    import torch

    from ..training.export import merge

    start = Start(arguments.source, arguments.weights)
    written = merge(
        arguments.folder, arguments.output, arguments.preset, start, getattr(torch, arguments.dtype)
    )
    _say_written(written)


def _say_written(written: Sequence[str]) -> None:
    path, *notes = written
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    print(path)
