"""Feature extractors for the metrics: their interface, and strict loading through transformers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ...checkpoints import checksums
from ...checkpoints.load import locate
from ...checkpoints.locate import files_of
from ...checkpoints.registry import weight_file
from ...checkpoints.tensors import check_finite
from ...encoders.pretrained import check_folder
from ...errors import WeightsError

FEATURES = "preprocessor_config.json"  # configuration of the spectrogram
Model = TypeVar("Model", bound=PreTrainedModel)

# Buffers that a network computes itself or never reads; a file may have them or not.
_COMPUTED = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")


@dataclass(frozen=True)
class Heard:
    """The output of a network for one clip."""

    embedding: Tensor  # (D,) float32 on the CPU
    logits: Tensor  # (K,) of its classes; empty if it has none


class Extractor(Protocol):
    """A network that takes whole clips of sound."""

    @property
    def rate(self) -> int:
        """The sample rate in Hz of the waveforms that it takes."""

    @property
    def window_s(self) -> float:
        """The number of seconds that it uses from the start of a clip."""

    def __call__(self, waveform: Tensor) -> Heard:
        """Run on ``waveform (A,)``, mono, float32, at `rate`, of 0.1 s or more."""


def load_pretrained(
    weights_dir: Path,
    key: str,
    model: type[Model],
    model_type: str,
    tokenizers: Sequence[Sequence[str]] = (),
) -> tuple[Path, Model]:
    """Load the network of ``key``: its folder, and the network in float32, in evaluation mode on the CPU.

    model_type, tokenizers: as for `check_folder`.
    Raises WeightsError for a folder that is missing, incomplete, damaged, changed or of another network, or
    whose weights do not match its configuration exactly.
    """
    file = weight_file(key)
    folder = locate(weights_dir, key, torch.float32)
    parts = files_of(file, folder)
    for part in parts:
        checksums.check(weights_dir, part)
    check_folder(folder, model_type, tokenizers)
    if not (folder / FEATURES).is_file():
        raise WeightsError(f"{folder}: no {FEATURES}; download the folder whole")
    try:
        with _quiet():
            loaded: Any = model.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported below with the other mistakes
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise WeightsError(f"{folder}: damaged or cut short ({reason}); download it again") from error
    network: Model
    network, found = loaded
    wrong = [
        f"{name} is {what}"
        for what, names in (
            ("missing", found["missing_keys"]),
            ("not known to it", found["unexpected_keys"]),
            ("of another size", [name for name, *_ in found["mismatched_keys"]]),
        )
        for name in sorted(names)
        if not name.endswith(_COMPUTED)
    ]
    if wrong:
        raise WeightsError(
            f"{folder}: not the weights of this {model.__name__} ({wrong[0]}, {len(wrong)} in all); "
            "download the folder again"
        )
    for name, parameter in network.named_parameters():
        check_finite(str(folder), name, parameter, parameter)
    checksums.record(weights_dir, parts)
    return folder, network.requires_grad_(False).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's progress bar and report; the caller reports errors itself."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
