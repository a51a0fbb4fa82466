"""What listens for the metrics: the interface, and strict loading of networks of the transformers library."""

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

FEATURES = "preprocessor_config.json"  # how sound becomes a spectrogram
Model = TypeVar("Model", bound=PreTrainedModel)

# Tables that a network computes for itself and counters that nothing reads: files have them or not.
_COMPUTED = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")


@dataclass(frozen=True)
class Heard:
    """What a network makes of one clip."""

    embedding: Tensor  # (D,) float32 on the CPU
    logits: Tensor  # (K,) of its classes; empty where it has none


class Extractor(Protocol):
    """A network that listens to whole clips."""

    @property
    def rate(self) -> int:
        """Hz of the waveforms it takes."""

    @property
    def window_s(self) -> float:
        """Seconds that it hears; what comes after them is not listened to."""

    def __call__(self, waveform: Tensor) -> Heard:
        """Listen to ``waveform (A,)``, mono, float32, at `rate`, of 0.1 s or more."""


def load_pretrained(
    weights_dir: Path,
    key: str,
    model: type[Model],
    model_type: str,
    tokenizers: Sequence[Sequence[str]] = (),
) -> tuple[Path, Model]:
    """The folder of ``key`` and its network in float32, in evaluation mode on the CPU.

    model_type, tokenizers: as for `check_folder`.
    Raises WeightsError for a folder that is missing, incomplete, damaged, changed, of another network, or
    whose weights are not exactly those of the network that it describes.
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
                ignore_mismatched_sizes=True,  # told apart below, all at once
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
    """No bar and no table of the library's own: what is wrong is said in our words."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
