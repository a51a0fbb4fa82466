"""Export of a run's network to a weight file that every command can load."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .. import __version__
from ..checkpoints import checksums
from ..checkpoints.convert import write_safetensors
from ..checkpoints.load import NAMES, OWN, fill
from ..checkpoints.locate import (
    describe_missing,
    is_complete,
    is_drawn,
    missing,
    published_path,
    read_metadata,
)
from ..checkpoints.registry import WeightFile, weight_file
from ..data.sounds import FolderSounds
from ..errors import InputError, OutputError
from ..families.find import family_of
from ..families.protocol import TRANSFORMER
from ..media.files import make_folder, whole_file
from ..presets import Preset, get_preset
from .loop import CHECKPOINT, read_checkpoint, trainable
from .lora import ADAPTER, check_peft, merge_adapter
from .options import Start
from .record import read_run
from .runs import start_dit
from .vae import latent_deviation
from .vaes import vae_training

_MADE_BY = "thinksound train"


def export_run(
    run: Path,
    output: Path,
    weights: Path | None = None,
    dtype: torch.dtype = torch.float32,
    averaged: bool = True,
    standardised: bool = False,
) -> list[str]:
    """Write the network that a run has trained.

    Args:
        run: folder of the run.
        output: a folder of weight files for ``--weights``, created if missing; the preset's other networks
            are linked there.
        weights: folder of the other networks; None takes the one that the run used.
        dtype: of the file.
        averaged: write the averaged weights, else those of the last step.
        standardised: scale a VAE so that its latents have standard deviation one over sounds of the run, for
            a transformer that will be trained on them from scratch.

    Returns:
        The path of the file, and sentences that the user should read.

    Raises:
        InputError: the folder holds no run or no checkpoint, or the run cannot be exported as asked.
        OutputError: ``output`` holds weights of this network that were not trained here.
    """
    record = read_run(run)
    if "command" not in record["options"]:
        raise InputError(
            f"{run}: a stage of scripts/train-tiny; what all stages trained is in weights/tiny beside it"
        )
    options, source = record["options"], weights or Path(record["other"]["weights folder"])
    preset, kind = get_preset(options["preset"]), options["command"]
    if not (run / CHECKPOINT).is_file():
        raise InputError(f"{run}: there is no checkpoint yet; train it longer, or save more often")
    if options.get("rank") is not None:
        if not averaged:
            raise InputError(f"{run}: of an adapter only the averaged weights are kept; export those")
        return merge(run / ADAPTER, output, preset.name, Start(options["from"], source), dtype)
    state = read_checkpoint(run / CHECKPOINT)
    family = family_of(preset)
    with torch.device("meta"):
        network = family.create(kind)
    fill(network, state["averages" if averaged else "networks"][kind], run / CHECKPOINT, torch.float32)
    if standardised:
        if kind != "vae":
            raise InputError(f"{run}: trained the transformer; standardising is for the latents of a VAE")
        standardise = vae_training(preset).standardise
        if standardise is None:
            raise InputError(
                f"{run}: the transformer of {preset.name} standardises latents itself, with what it measures "
                "when it is trained from scratch; export without --standardise"
            )
        trainable(network)  # writable
        sound = family.sound
        sounds = FolderSounds(Path(record["other"]["data folder"]), sound.sample_rate, without=run)
        deviation = latent_deviation(network, sounds, options["excerpt"] * sound.hop)
        standardise(network, deviation)
    return _write(network, preset, kind, output, source, dtype, options["from"], state["step"])


def merge(
    adapter: Path, output: Path, preset: str, start: Start, dtype: torch.dtype = torch.float32
) -> list[str]:
    """Write the transformer with an adapter merged into it; see `export_run`.

    Args:
        adapter: a folder in peft's format.
        output: a folder of weight files, as for `export_run`.
        preset: name of the network's preset.
        start: the weights that the adapter was trained on.
        dtype: of the file.
    """
    check_peft()
    chosen = get_preset(preset)
    network = start_dit(start, chosen, 0, torch.float32)
    trainable(network)  # mapped weights cannot be changed
    merge_adapter(network, adapter)
    return _write(network, chosen, TRANSFORMER, output, start.folder, dtype, start.source)


def _write(
    network: nn.Module,
    preset: Preset,
    kind: str,
    output: Path,
    source: Path,
    dtype: torch.dtype,
    start: str,
    step: int | None = None,
) -> list[str]:
    file = weight_file(preset.weights[kind])
    path = output / (file.path if file.bundled else file.converted_path)
    _check_free(output, file)
    make_folder(path.parent)
    metadata = {
        "format": "pt",
        NAMES: OWN,
        "dtype": str(dtype).removeprefix("torch."),
        "source": f"{_MADE_BY} {kind} {__version__}, from {start}",
    }
    if step is not None:
        metadata["steps"] = str(step)
    with whole_file(path) as temporary:
        write_safetensors(temporary, network.state_dict(), dtype, metadata, file.key)
    linked = _link_others(preset, kind, source, output)
    if file.bundled:
        checksums.seal(path.parent)
    else:
        checksums.record_sha256(output, path, checksums.file_sha256(path))
    notes = [str(path)]
    if start != "scratch" and not file.bundled:
        notes.append(f"derived from published weights, whose licence holds: {file.licence}")
    return notes + linked


def _check_free(output: Path, file: WeightFile) -> None:
    """Refuse to replace, or to hide, weights that were not trained here.

    Raises:
        OutputError: the folder holds such weights.
    """
    for path in (output / file.path, output / file.converted_path):
        if is_complete(file, path) and not is_drawn(file, path):
            ours = path.suffix == ".safetensors" and read_metadata(path).get("source", "")
            if not (ours and ours.startswith(_MADE_BY)):
                raise OutputError(
                    f"{output}: holds other weights of this network ({path.relative_to(output)}); "
                    "give a new folder"
                )


def _link_others(preset: Preset, kind: str, source: Path, output: Path) -> list[str]:
    """Link the preset's other networks into ``output``; return sentences on what could not be linked."""
    keys = [key for network, key in preset.weights.items() if network != kind]
    for file in map(weight_file, keys):
        sources = {file.path: published_path(source, file), file.converted_path: source / file.converted_path}
        if any(is_complete(file, output / name) for name in sources):
            continue
        for name, there in sources.items():
            there = there.absolute()
            if is_complete(file, there):
                try:
                    _link(there, output / name, each_file=file.bundled)
                except OSError as error:
                    return [f"{output / name}: cannot be linked ({error.strerror}); copy {there} there"]
    absent = missing(output, keys)
    return [describe_missing(output, absent)] if absent else []


def _link(there: Path, here: Path, each_file: bool) -> None:
    """Link a file or a folder; ``each_file`` links a folder's files one by one, as checksums need it."""
    if each_file and there.is_dir():
        for entry in there.iterdir():
            _link(entry, here / entry.name, each_file)
        return
    make_folder(here.parent)
    if not here.exists():
        here.symlink_to(there, target_is_directory=there.is_dir())
