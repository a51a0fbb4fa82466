"""`thinksound weights`: downloads, verifies, converts or finds the weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoints.locate import weights_folder
from ..errors import InputError
from ..presets import PRESETS
from ..runtime.precision import DTYPES
from .arguments import add_preset, add_quiet, add_weights_dir
from .progress import Bars


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("weights", help="download, verify, convert or find the weights")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(run=run, interrupted="finished files stay; run it again to go on")
        add_weights_dir(action)
        add_quiet(action)
        return action

    add_preset(add("download", _download, "fetch what a preset lacks; an interrupted download resumes"))
    verify = add("verify", _verify, "hash every file that is there and compare with its first use")
    verify.add_argument("--accept", action="store_true", help="take files that changed as the new truth")
    convert = add("convert", _convert, "write one safetensors file per network: smaller, faster to load")
    add_preset(convert)
    convert.add_argument(
        "--dtype",
        choices=DTYPES[1:],
        default="bfloat16",
        help="(default: bfloat16; VAE and vocoder always stay in float32)",
    )
    add_preset(add("path", _path, "print where each file is, or belongs"))


def _download(arguments: argparse.Namespace) -> None:
    from ..checkpoints.download import download
    from ..checkpoints.registry import weight_file

    folder, keys = weights_folder(arguments.weights), list(PRESETS[arguments.preset].weights.values())
    with Bars(arguments.quiet) as bars:
        download(folder, keys, bars)
    if not arguments.quiet:
        bundled = all(weight_file(key).bundled for key in keys)
        print(f"{arguments.preset}: {'comes with this project' if bundled else f'complete in {folder}'}")


def _verify(arguments: argparse.Namespace) -> None:
    from ..checkpoints.checksums import verify
    from ..checkpoints.registry import bundled_dir, restore_advice

    with Bars(arguments.quiet) as bars:
        rows = verify(weights_folder(arguments.weights), accept=arguments.accept, progress=bars)
    for row in rows:
        print(f"{row.status:<9} {row.sha256}  {row.size:>14,}  {row.path}")
    changed = [str(row.path) for row in rows if row.status == "changed"]
    if changed:
        raise InputError(
            f"changed since first use: {', '.join(changed)}; download again, or take them with --accept "
            f"(what comes with this project: {restore_advice(bundled_dir())})"
        )


def _convert(arguments: argparse.Namespace) -> None:
    import torch

    from ..checkpoints.convert import convert
    from ..families.find import contents_of

    networks = PRESETS[arguments.preset].networks.values()
    dtypes = {
        network.key: getattr(torch, "float32" if network.always_float32 else arguments.dtype)
        for network in networks
    }
    with Bars(arguments.quiet) as bars:
        rows = convert(weights_folder(arguments.weights), list(dtypes), dtypes, contents_of, bars)
    for row in rows:
        print(row)


def _path(arguments: argparse.Namespace) -> None:
    for line in weight_lines(weights_folder(arguments.weights), [arguments.preset]):
        print(line)


def weight_lines(folder: Path, presets: Sequence[str]) -> list[str]:
    """Return lines about the files that the presets need: each copy that is here, or where a file belongs.

    If the folder does not exist, the first line says so.
    """
    from ..checkpoints.cache import cached_files
    from ..checkpoints.locate import check_weights_dir, is_complete, is_drawn, published_path
    from ..checkpoints.registry import weight_file

    check_weights_dir(folder, may_be_absent=True)
    lines = [] if folder.is_dir() else [f"missing  {folder}  (no such folder)"]
    for key in dict.fromkeys(key for name in presets for key in PRESETS[name].weights.values()):
        file = weight_file(key)
        published, converted = published_path(folder, file), folder / file.converted_path
        here = [path for path in (published, converted) if is_complete(file, path)]
        states = {path: "drawn" if is_drawn(file, path) else "here" for path in here}
        lines += [f"{state:<8} {path}  ({file.licence})" for path, state in states.items()]
        if not here:
            cached = {} if file.bundled else cached_files(file)
            lines.append(f"missing  {published}  ({file.licence})")
            if cached:
                found = next(iter(cached.values()))
                place = found.parent if file.is_folder else found
                lines.append(f"cached   {place}  (`thinksound weights download` links it)")
    return lines
