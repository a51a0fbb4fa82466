"""A plot of a generated sound: its waveform and spectrogram, the true events, and the true spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ...media.files import whole_file
from .spectra import HOP, RATE, FloatArray, Waveform, magnitudes, resample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RANGE_DB = 80.0  # below the loudest point


def plot_sound(
    path: Path | str,
    generated: Waveform,
    true: Waveform,
    sample_rate: int,
    true_onsets: FloatArray | Sequence[float],
    found_onsets: FloatArray | Sequence[float],
    title: str,
) -> None:
    """Write a PNG of a generated sound and of the true one, on one time axis.

    Args:
        path: of the PNG, which appears whole or not at all.
        generated: (2, A).
        true: (2, A').
        sample_rate: of both, in Hz.
        true_onsets: in seconds, drawn as lines through every panel.
        found_onsets: in seconds, detected in ``generated``, drawn as marks above its waveform.
        title: of the plot.

    Raises:
        InputError: matplotlib is not installed.
        OutputError: the file cannot be written; nothing is left behind.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "a picture needs matplotlib, which is not installed; pip install 'thinksound-cog[evaluation]'"
        ) from None

    figure = Figure(figsize=(11, 8), dpi=100, layout="constrained")
    wave, below, reference = figure.subplots(3, sharex=True)
    time = np.arange(generated.shape[1]) / sample_rate
    wave.plot(time, generated[0], linewidth=0.4, label="left")
    wave.plot(time, generated[1], linewidth=0.4, alpha=0.7, label="right")
    if len(found_onsets):  # matplotlib cannot lay out the panels with an empty series
        marks = np.full(len(found_onsets), 1.1)
        wave.plot(found_onsets, marks, "kv", markersize=5, label="heard", clip_on=False)
    wave.set(title=title, ylabel="generated", ylim=(-1.2, 1.2))
    draw_spectrogram(below, generated, sample_rate)
    below.set(ylabel="generated, kHz")
    draw_spectrogram(reference, true, sample_rate)
    reference.set(ylabel="true sound, kHz", xlabel="seconds")
    for axes in (wave, below, reference):
        for number, onset in enumerate(true_onsets):
            axes.axvline(onset, color="red", linewidth=0.8, label=None if number else "true event")
    wave.set_xlim(0, generated.shape[1] / sample_rate)
    wave.legend(loc="lower right", fontsize="small", ncols=4)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_spectrogram(axes: Axes, waveform: Waveform, sample_rate: int) -> None:
    """Draw the spectrogram of ``waveform (2, A)`` up to 8 kHz, over 80 dB below its loudest point."""
    sound = resample(waveform, sample_rate).mean(axis=0)
    power = magnitudes(sound).T ** 2  # (F, T)
    level = 10 * np.log10(np.maximum(power / max(float(power.max()), 1e-20), 10 ** (-_RANGE_DB / 10)))
    extent = (0.0, level.shape[1] * HOP / RATE, 0.0, RATE / 2000)
    axes.imshow(level, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-_RANGE_DB, vmax=0)
