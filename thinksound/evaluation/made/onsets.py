"""Onsets: a plain detector, and the agreement of found onsets with true ones.

The detector is not trained: it sums how much every band of the spectrum has grown within 15 ms (spectral
flux) and takes the peaks that stand out from their surroundings. It is nearly exact for single impacts.
Rain, scraping and engines cause false onsets, so scenes with them need the trained judge
(`thinksound.evaluation.made.judges`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...synthetic.scene import Scene
from .spectra import FRAME_S, HOP, WINDOW, FloatArray, Waveform, magnitudes, resample

RESOLUTION_S = 0.05  # a true onset this soon after another one counts as the same

_LAG = 3  # frames between the two spectra that are compared
_BANDS = 24
_RANGE = 1e3  # power below 1 / _RANGE of the loudest hardly counts
_PROMINENCE = 12.0  # of a peak over the median of its surroundings
_ECHO_S = 0.1  # a lower peak this near to a higher one is an echo from the walls
_SURROUNDINGS_S = 0.3  # on each side


def detect_onsets(waveform: Waveform, sample_rate: int) -> FloatArray:
    """Times in seconds (N,) of the onsets in ``waveform (2, A)``, in order."""
    sound = resample(np.asarray(waveform, dtype=np.float32), sample_rate)
    power = np.sum([magnitudes(channel) ** 2 for channel in sound], axis=0)  # (T, F)
    edges = np.unique(np.geomspace(2, power.shape[1], _BANDS + 1).astype(int))
    bands = np.stack([power[:, a:b].mean(axis=1) for a, b in pairwise(edges)])
    loudest = float(bands.max())
    if loudest == 0:
        return np.empty(0)
    level = np.log1p(bands / loudest * _RANGE)
    flux = np.zeros(level.shape[1])
    flux[_LAG:] = np.maximum(level[:, _LAG:] - level[:, :-_LAG], 0).sum(axis=0)
    flux[-(WINDOW // HOP) :] = 0  # every band grows where the sound is cut off
    return pick_peaks(flux, FRAME_S, _PROMINENCE, _ECHO_S)


def pick_peaks(curve: FloatArray, frame_s: float, prominence: float, apart_s: float) -> FloatArray:
    """Times in seconds (N,) of the peaks of a curve.

    Args:
        curve: (T,), one value every ``frame_s`` seconds.
        prominence: by how much a peak must exceed the median of the 0.3 s on each side of it.
        apart_s: of peaks that are nearer to each other than this, only the highest counts.
    """
    apart, around = round(apart_s / frame_s), round(_SURROUNDINGS_S / frame_s)
    found: list[int] = []
    for frame in np.flatnonzero(curve > prominence).tolist():
        if curve[frame] < curve[max(0, frame - apart) : frame + apart + 1].max():
            continue
        usual = np.median(curve[max(0, frame - around) : frame + around + 1])
        if curve[frame] > usual + prominence and (not found or frame - found[-1] > apart):
            found.append(frame)
    return np.array(found) * frame_s


def true_onsets(scene: Scene) -> FloatArray:
    """Onsets in seconds (N,) of all impacts of a scene; those within `RESOLUTION_S` count as one."""
    onsets = np.sort(np.concatenate([source.onsets for source in scene.sources]))
    kept: list[float] = []
    for onset in onsets.tolist():
        if not kept or onset - kept[-1] >= RESOLUTION_S:
            kept.append(onset)
    return np.array(kept)


@dataclass(frozen=True)
class OnsetMatch:
    """Numbers of true, found and matched onsets (hits), of one clip or of many."""

    hits: int
    true: int
    found: int

    def __add__(self, other: OnsetMatch) -> OnsetMatch:
        return OnsetMatch(self.hits + other.hits, self.true + other.true, self.found + other.found)

    @property
    def precision(self) -> float:
        return self.hits / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.hits / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 if there is no true and no found onset."""
        total = self.true + self.found
        return 2 * self.hits / total if total else 1.0


def match_onsets(
    true: Sequence[float] | FloatArray, found: Sequence[float] | FloatArray, tolerance_s: float
) -> OnsetMatch:
    """Pair true and found onsets, each used once, as many as possible within the tolerance."""
    expected, heard = np.sort(np.asarray(true)), np.sort(np.asarray(found))
    i = j = hits = 0
    while i < len(expected) and j < len(heard):  # pairing the earliest first gives the most pairs
        if abs(expected[i] - heard[j]) <= tolerance_s:
            hits, i, j = hits + 1, i + 1, j + 1
        elif expected[i] < heard[j]:
            i += 1
        else:
            j += 1
    return OnsetMatch(hits, len(expected), len(heard))


def total(matches: Iterable[OnsetMatch]) -> OnsetMatch:
    """Sum of the counts of many clips; its F1 weighs every event equally, not every clip."""
    return sum(matches, OnsetMatch(0, 0, 0))
