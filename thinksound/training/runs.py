"""A training run from options to trained weights: what `thinksound train` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..checkpoints.load import Encoder, load_file, load_network, network_of
from ..checkpoints.locate import describe_missing, missing
from ..data.clips import hash_of
from ..data.shards import PreparedClips
from ..data.sounds import FolderSounds
from ..errors import InputError, WeightsError
from ..families.find import family_of
from ..families.flow import FlowFamily
from ..families.protocol import TRANSFORMER, Family
from ..media.files import make_folder
from ..models.flow import FlowTransformer
from ..presets import Preset, get_preset
from ..progress import Progress
from ..runtime.placement import detect_machine, memory_errors
from .dropping import settled
from .flow import FlowLearner, initialise_flow, latent_statistics, recompute_blocks
from .log import check_tensorboard
from .loop import Report, Trainer, trainable
from .lora import Adapter, check_peft
from .options import DTYPES, START_PRESET, START_SCRATCH, DiTRun, Start, VAERun, check_dtype
from .processes import Process, joined
from .record import declare_run
from .samples import SampleWriter
from .vaes import VAETraining, vae_training

logger = logging.getLogger(__name__)

# Options that do not change the result, or only how far a run goes; the dtype is recorded apart.
_FREE = {"steps", "log_every", "validate_every", "save_every", "sample_every", "keep", "parts", "dtype"}
_DIT_ADVICE = "a smaller --batch, more --parts, --recompute, or --lora"
_VAE_ADVICE = "a smaller --batch or a shorter --excerpt"


def train_dit(run: DiTRun, progress: Progress | None = None, report: Report | None = None) -> None:
    """Train the transformer to the last step; resumes a run that its folder holds.

    Raises:
        ThinkSoundError: with a message for the user, before the first step if the cause is known by then.
    """
    preset = get_preset(run.preset)
    family = cast(FlowFamily, family_of(preset))
    if run.tensorboard:
        check_tensorboard()
    if run.lora:
        check_peft()
        if run.start.source == START_SCRATCH:
            raise InputError("--lora with --from scratch: an adapter needs weights that it adapts")
    clips = _open(run.data, preset)
    validation = _open(run.validation, preset) if run.validation is not None else None
    if validation and validation.made_by.get("encoders") != clips.made_by.get("encoders"):
        raise InputError(
            f"{validation.folder}: encoded with other weights than {clips.folder}; prepare both with the same"
        )
    with joined(run.device) as process, memory_errors(_DIT_ADVICE):
        dtype = _dtype_of_products(run.dtype, process.device)
        flow = replace(run.flow, batch=_share(run.flow.batch, process), dtype=dtype)
        make_folder(run.folder)
        essential = {
            "command": "dit",
            "preset": preset.name,
            "data": _identity(clips),
            "from": run.start.identity,
            "dtype": dtype,
            **_essential(run.loop),
            **_essential(settled(run.flow, family)),
            **(asdict(run.lora) if run.lora else {}),
        }
        other = {
            "data folder": run.data.absolute(),
            "validation folder": run.validation and run.validation.absolute(),
            "weights folder": run.start.folder.absolute(),
            "processes": process.count,
            "steps": run.loop.steps,
        }
        for note in declare_run(run.folder, essential, other):
            logger.warning(note)

        adapter = None
        if run.lora:
            # Frozen weights need no higher precision than the products that they enter.
            network = start_dit(run.start, preset, run.loop.seed, getattr(torch, dtype))
            adapter = Adapter(network, run.lora, run.loop.seed)
        else:
            network = start_dit(run.start, preset, run.loop.seed, torch.float32)
            if run.start.source == START_SCRATCH:
                network.normalise_by(*latent_statistics(clips))
                family.encode_nulls(network, partial(_load, family, folder=run.start.folder))
            trainable(network)
        network.to(process.device)
        if run.recompute:
            recompute_blocks(network)
        writer = None
        if run.loop.sample_every:
            sound = {name: _load(family, name, run.start.folder) for name in family.sound_networks}
            if process.rank == 0:
                for name, built in sound.items():
                    family.placed(name, built).to(process.device)
                writer = SampleWriter(
                    validation or clips,
                    run.samples,
                    family,
                    family.decoding(sound),
                    preset.guidance_scale,
                    process.device,
                    dtype,
                )
        learner = FlowLearner(
            network, family, flow, clips, validation, run.loop.seed, process.rank, process.count
        )
        trainer = Trainer(
            learner,
            run.loop,
            run.folder,
            run.tensorboard,
            write_samples=writer,
            write_beside=adapter.write if adapter else None,
        )
        _finish(trainer, progress, report)


def train_vae(run: VAERun, progress: Progress | None = None, report: Report | None = None) -> None:
    """Train the VAE to the last step; resumes a run that its folder holds.

    Raises:
        ThinkSoundError: with a message for the user, before the first step if the cause is known by then.
    """
    preset = get_preset(run.preset)
    if run.tensorboard:
        check_tensorboard()
    training = vae_training(preset)
    sounds = FolderSounds(run.data, family_of(preset).sound.sample_rate, without=run.folder)
    options = _vae_options(training, preset, run.recipe)
    with joined(run.device) as process, memory_errors(_VAE_ADVICE):
        dtype = _dtype_of_products(run.dtype, process.device)
        options = replace(options, dtype=dtype, batch=_share(options.batch, process))
        make_folder(run.folder)
        essential = {
            "command": "vae",
            "preset": preset.name,
            "data": sounds.identity,
            "from": run.start.identity,
            "processes": process.count,  # each draws its own excerpts
            "dtype": dtype,
            **_essential(run.loop),
            **_essential(options),
        }
        other = {
            "data folder": run.data.absolute(),
            "weights folder": run.start.folder.absolute(),
            "steps": run.loop.steps,
        }
        for note in declare_run(run.folder, essential, other):
            logger.warning(note)
        vae = start_vae(run.start, preset, run.loop.seed)
        if run.start.source == START_SCRATCH and training.measure is not None:
            training.measure(vae, sounds, options.excerpt)
        trainable(vae)
        vae.to(process.device)
        learner = training.learner(vae, options, sounds, run.loop.seed)
        _finish(Trainer(learner, run.loop, run.folder, run.tensorboard), progress, report)


def _finish(trainer: Trainer, progress: Progress | None, report: Report | None) -> None:
    if not trainer.run(progress, "train", report):
        logger.warning(
            "%s has been trained for %d steps already; more --steps go on", trainer.folder, trainer.step
        )


def _vae_options(training: VAETraining, preset: Preset, changes: Mapping[str, Any]) -> Any:
    known = {each.name for each in fields(training.options)}
    for name in changes:
        if name not in known:
            raise InputError(
                f"{name}: the VAE of {preset.name} is trained without it; leave it out", option=name
            )
    return replace(training.options, **changes)


def _open(folder: Path, preset: Preset) -> PreparedClips:
    clips = PreparedClips(folder)
    clips.check(preset)
    return clips


def start_dit(start: Start, preset: Preset, seed: int, dtype: torch.dtype) -> FlowTransformer:
    """The transformer before the first step.

    Raises:
        WeightsError: its file is missing, damaged, or of another network.
    """
    return cast(FlowTransformer, _start(start, preset, TRANSFORMER, initialise_flow, seed, dtype))


def start_vae(start: Start, preset: Preset, seed: int) -> nn.Module:
    """The VAE before the first step.

    Raises:
        WeightsError: its file is missing, damaged, or of another network.
    """
    return _start(start, preset, "vae", vae_training(preset).initialise, seed, torch.float32)


def _start(
    start: Start,
    preset: Preset,
    name: str,
    initialise: Callable[[Any, int], None],
    seed: int,
    dtype: torch.dtype,
) -> nn.Module:
    family = family_of(preset)
    if start.source == START_SCRATCH:
        network = family.create(name)
        initialise(network, seed)
        return network.to(dtype)
    if start.source == START_PRESET:
        absent = missing(start.folder, [preset.weights[name]])
        if absent:
            raise WeightsError(
                f"{describe_missing(start.folder, absent)}; or start from a file with --from FILE, from "
                "nothing with --from scratch"
            )
        return network_of(_load(family, name, start.folder, dtype))
    with torch.device("meta"):
        network = family.create(name)
    return load_file(network, Path(start.source), preset.weights[name], dtype, family.fold(name))


def _load(family: Family, name: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module | Encoder:
    key = family.preset.weights[name]
    return load_network(partial(family.build, name), folder, key, dtype, family.fold(name))


def _share(batch: int, process: Process) -> int:
    if batch % process.count:
        raise InputError(
            f"batch {batch}: {process.count} processes cannot share it evenly; "
            f"give a multiple of {process.count}",
            option="batch",
        )
    return batch // process.count


def _dtype_of_products(wish: str, device: torch.device) -> str:
    """The dtype of matrix products; weights, averages and sums always are float32."""
    check_dtype(wish, DTYPES)
    if wish != "auto":
        return wish
    fast = device.type == "cuda" and detect_machine().gpus[device.index or 0].bfloat16
    return "bfloat16" if fast else "float32"


def _identity(clips: PreparedClips) -> str:
    """Count of prepared clips and hash of their encoders, layout and names, wherever the folder is."""
    words = [str(clips.made_by.get("encoders")), str(clips.layout), *clips.names]
    return f"{len(clips)} clips ({hash_of(words)[:12]})"


def _essential(options: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(options).items() if name not in _FREE}
