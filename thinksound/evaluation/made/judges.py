"""Judges: small networks that recognise onsets, kinds and materials in sounds of synthetic clips.

They are independent of the generator: they were trained on true sounds only, with seeds that neither train
nor measure a generator (`thinksound.synthetic.seeds`). Both take powers in mel bands every 10 ms, relative
to the loudest of the clip down to -60 dB, summed over both channels. `evaluation.made.judge_training` trains
them; ``judges.json`` has their accuracy on true sounds that they were not trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...checkpoints.locate import weights_folder
from ...checkpoints.registry import bundled_dir, restore_advice
from ...errors import WeightsError
from ...synthetic.kinds import KINDS
from ...synthetic.materials import MATERIALS
from .onsets import RESOLUTION_S, pick_peaks
from .spectra import MEL_BANDS, MEL_FRAME_S, FloatArray, Waveform, mel_power

FOLDER = "judges"  # in the weights folder
ONSETS_FILE, SOURCES_FILE, RECORD_FILE = "onsets.safetensors", "sources.safetensors", "judges.json"
KIND_NAMES, MATERIAL_NAMES = tuple(KINDS), tuple(MATERIALS)

_FLOOR = 1e-6  # relative to the largest power
_ONSET_LIKELIHOOD = 0.4


def relative_level(power: Tensor) -> Tensor:
    """Mel powers (B, T, 64) as inputs of the judges: logarithms from -2 (-60 dB) to 2 (loudest)."""
    loudest = power.amax(dim=(1, 2), keepdim=True).clamp_min(1e-20)
    return (power / loudest + _FLOOR).log10() / 1.5 + 2


class _Bands(nn.Module):
    """Two convolutions over time and bands; the bands are then flattened into channels."""

    def __init__(self, widths: tuple[int, int], time_stride: int) -> None:
        super().__init__()
        first, second = widths
        stride = (time_stride, 2)
        self.conv1 = nn.Conv2d(1, first, 5, stride, padding=2, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(second)
        self.out_channels = second * MEL_BANDS // 4

    def forward(self, levels: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(levels[:, None])))  # (B, C, T, 32)
        x = F.relu(self.norm2(self.conv2(x)))  # (B, C', T', 16)
        return x.transpose(2, 3).flatten(1, 2)  # (B, C' * 16, T')


class _Step(nn.Module):
    """A convolution over time."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class OnsetJudge(nn.Module):
    """Levels (B, T, 64) to logits (B, T) of an onset in each frame."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.bands = _Bands((8, 12), time_stride=1)
        self.entry = _Step(self.bands.out_channels, width, 5)
        self.near = _Step(width, width, 5, dilation=2)
        self.far = _Step(width, width, 5, dilation=4)
        self.exit = nn.Conv1d(width, 1, 1)

    def forward(self, levels: Tensor) -> Tensor:
        x = self.entry(self.bands(levels))
        x = x + self.near(x)
        x = x + self.far(x)
        return self.exit(x)[:, 0]


class SourceJudge(nn.Module):
    """Levels (B, T, 64) to logits of kinds (B, 8), and of the materials of each kind (B, 8, 5)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.bands = _Bands((12, 24), time_stride=2)
        self.entry = _Step(self.bands.out_channels, width, 3)
        self.middle = _Step(width, width, 3)
        self.far = _Step(width, width, 3, dilation=2)
        self.hidden = nn.Linear(2 * width, 128)
        self.exit = nn.Linear(128, len(KIND_NAMES) * (1 + len(MATERIAL_NAMES)))

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.far(self.middle(self.entry(self.bands(levels))))  # (B, W, T / 4)
        x = torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)
        x = self.exit(F.relu(self.hidden(x)))
        kinds, materials = x.split([len(KIND_NAMES), len(KIND_NAMES) * len(MATERIAL_NAMES)], dim=1)
        return kinds, materials.unflatten(1, (len(KIND_NAMES), len(MATERIAL_NAMES)))


@dataclass(frozen=True)
class Judgement:
    """The judges' output for one sound."""

    onsets: FloatArray  # seconds (N,)
    kinds: FloatArray  # (8,) logits, in the order of `KIND_NAMES`
    materials: FloatArray  # (8, 5) logits for each kind, in the order of `MATERIAL_NAMES`

    def likeliest_kinds(self, count: int) -> tuple[str, ...]:
        """The ``count`` kinds with the largest logits."""
        return tuple(KIND_NAMES[index] for index in np.argsort(-self.kinds, kind="stable")[:count])

    def material_of(self, kind: str) -> str:
        """The likeliest material of a kind among those that it can have, given that the kind is there."""
        row = self.materials[KIND_NAMES.index(kind)]
        return max(KINDS[kind].materials, key=lambda name: float(row[MATERIAL_NAMES.index(name)]))


class Judges:
    """Both judges, in evaluation mode."""

    def __init__(self, onsets: OnsetJudge, sources: SourceJudge, record: dict[str, Any]) -> None:
        self.record = record  # their training data and accuracy
        self._onsets = onsets.eval()
        self._sources = sources.eval()

    @torch.inference_mode()
    def listen(self, waveform: Waveform) -> Judgement:
        """Judge a sound (2, A) at `spectra.RATE`."""
        levels = relative_level(torch.from_numpy(mel_power(waveform)).float()[None])
        likelihood = self._onsets(levels)[0].sigmoid().double().numpy()
        kinds, materials = self._sources(levels)
        return Judgement(
            onsets=onsets_of(likelihood),
            kinds=kinds[0].double().numpy(),
            materials=materials[0].double().numpy(),
        )


def onsets_of(likelihood: FloatArray) -> FloatArray:
    """Onsets in seconds (N,) from the likelihood (T,) of an onset in each frame of 10 ms."""
    return pick_peaks(likelihood, MEL_FRAME_S, _ONSET_LIKELIHOOD, RESOLUTION_S - MEL_FRAME_S)


def judges_folder(weights: Path | None = None) -> Path:
    """The folder of the judges: in the weights folder if it holds their record, else in `bundled_dir`."""
    folder = weights_folder(weights) / FOLDER
    bundled = bundled_dir() / FOLDER
    return bundled if not (folder / RECORD_FILE).is_file() and bundled.is_dir() else folder


def load_judges(folder: Path) -> Judges:
    """Load the judges of a folder.

    Raises:
        WeightsError: a file is missing, damaged, or of other networks.
    """
    remedy = f"{restore_advice(folder)}, or train the judges again with `thinksound evaluate judges`"
    with torch.device("meta"):
        networks: tuple[nn.Module, nn.Module] = OnsetJudge(), SourceJudge()
    for name, network in zip((ONSETS_FILE, SOURCES_FILE), networks, strict=True):
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"{path}: missing; {remedy}")
        try:
            tensors = {key: _working_type(tensor) for key, tensor in load_file(path).items()}
            network.load_state_dict(tensors, assign=True)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise WeightsError(f"{path}: not the weights of a judge ({error}); {remedy}") from None
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / RECORD_FILE}: cannot be read ({error}); {remedy}") from None
    onsets, sources = networks
    assert isinstance(onsets, OnsetJudge) and isinstance(sources, SourceJudge)
    return Judges(onsets, sources, record)


def _working_type(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
