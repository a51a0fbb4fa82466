"""A preset's networks from their weight files onto this machine's devices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .checkpoints.load import load_network
from .checkpoints.locate import describe_missing, missing
from .checkpoints.registry import default_weights_dir
from .errors import InputError, WeightsError
from .families.find import family_of
from .pipeline import Pipeline
from .presets import DEFAULT_PRESET, get_preset
from .progress import Progress
from .request import as_path, by_current_names, check_progress, describe
from .runtime.placement import Placement, detect_machine, make_plan, memory_errors

logger = logging.getLogger(__name__)


def load(
    preset: str = DEFAULT_PRESET,
    weights: Path | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    offload: bool = False,
    progress: Progress | None = None,
    **older: str,
) -> Pipeline:
    """Load a preset's networks onto this machine's devices.

    Args:
        preset: a name from `thinksound.presets.PRESETS`, such as "thinksound-light" or "tiny".
        weights: folder with the weight files; None is `default_weights_dir`.
        device: "auto", "cpu", "cuda", "cuda:N", or "cuda:M,cuda:N" (encoders on the second, the other
            networks on the first); or a `torch.device`.
        dtype: "auto", "float32", "bfloat16" or "float16", or the `torch.dtype`. "float32" also switches
            PyTorch's TensorFloat-32 convolutions off, for the whole process.
        offload: keep weights in main memory, with one network at a time on the GPU.
        progress: called as ``progress("load", done, total)`` after each network.
        older: ``devices``, the older name of ``device``.

    Raises:
        InputError: an argument has a value or a name that is not listed here.
        WeightsError: files are missing, damaged or of another network.
        PlacementError: a device is missing, or memory ran out.
    """
    chosen = get_preset(preset)
    if older:
        given = older if device == "auto" else {"device": device, **older}
        arguments = ("preset", "weights", "dtype", "offload", "progress")
        device = by_current_names(given, ("device",), arguments)["device"]
    folder = as_path("weights", weights, "a folder") if weights is not None else default_weights_dir()
    check_progress(progress)
    if not isinstance(offload, bool):
        raise InputError(f"offload {describe(offload)} is not taken; give True or False")
    dtype = str(dtype).removeprefix("torch.")
    plan = make_plan(detect_machine(), chosen.networks, str(device), dtype, offload)
    if dtype == "float32":
        torch.backends.cudnn.allow_tf32 = False
    absent = missing(folder, chosen.weights.values())
    if absent:
        raise WeightsError(describe_missing(folder, absent))

    family, placement = family_of(chosen), Placement(plan)
    built: dict[str, Any] = {}
    with memory_errors():
        for done, (name, network) in enumerate(chosen.networks.items(), 1):
            build: Callable[[Path], Any] = partial(family.build, name)
            network_dtype = getattr(torch, plan.dtypes[name])
            built[name] = load_network(build, folder, network.key, network_dtype, family.fold(name))
            # Placed at once, so that main memory holds one network on its way to a GPU, not all of them.
            placement.place(name, family.placed(name, built[name]))
            if progress:
                progress("load", done, len(chosen.networks))
    for note in plan.notes:
        logger.warning(note)
    return Pipeline(chosen, family.assemble(built), placement)
