"""What all measures use: sound at one sample rate, its spectrum over time, its mel bands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # Hz; all sounds are resampled to it before they are measured
HOP = 80  # samples between frames: 5 ms
FRAME_S = HOP / RATE
WINDOW = 512  # samples of a frame: 32 ms
MEL_HOP = 160  # samples between frames of band powers: 10 ms
MEL_FRAME_S = MEL_HOP / RATE
MEL_BANDS = 64

FloatArray = NDArray[np.float64]
Waveform = NDArray[np.float32]  # (2, A)


def resample(waveform: Waveform, sample_rate: int) -> Waveform:
    """Resample a waveform (C, A) to `RATE` by truncating or zero-padding its spectrum."""
    if sample_rate == RATE:
        return waveform
    samples = waveform.shape[-1]
    length = round(samples * RATE / sample_rate)
    # Mirrored ends, so that the seam of the circular transform is outside of what is kept.
    edge = min(samples - 1, sample_rate // 10)
    padded = np.pad(waveform.astype(np.float64), ((0, 0), (edge, edge)), mode="reflect")
    total = round(padded.shape[-1] * RATE / sample_rate)
    spectrum = np.fft.rfft(padded)
    bins = total // 2 + 1
    cut = np.zeros((len(waveform), bins), dtype=spectrum.dtype)
    kept = min(bins, spectrum.shape[-1])
    cut[:, :kept] = spectrum[:, :kept]
    result = np.fft.irfft(cut, total) * (total / padded.shape[-1])
    start = round(edge * RATE / sample_rate)
    return result[:, start : start + length].astype(np.float32)


def magnitudes(
    sound: FloatArray | NDArray[np.float32], window: int = WINDOW, hop: int = HOP, bins: int = 0
) -> FloatArray:
    """Magnitudes (T, F) of the Hann-windowed spectrum of sound (A,); frame i is centred on sample i * hop.

    A sine of amplitude 1 gives 0.5 in its bin. ``bins`` is a longer transform, for a finer spectrum.
    """
    padded = np.pad(sound, window // 2, mode="reflect")  # zeros would sound like a click at the ends
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    weights = np.hanning(window + 1)[:-1]
    return np.abs(np.fft.rfft(frames * weights, max(bins, window), axis=1)) / weights.sum()


def mel_power(waveform: Waveform) -> FloatArray:
    """Power in mel bands (T, 64) of ``waveform (C, A)`` at `RATE`, summed over its channels.

    Triangular bands of equal width on the mel scale between 40 Hz and 8 kHz.
    """
    power = np.sum([magnitudes(channel, hop=MEL_HOP) ** 2 for channel in waveform], axis=0)  # (T, F)
    return power @ _mel_filters().T


def _mel_filters() -> FloatArray:
    """Weights (64, F)."""

    def mel(hz: float | FloatArray) -> FloatArray:
        return np.asarray(2595 * np.log10(1 + np.asarray(hz) / 700))

    hz = np.fft.rfftfreq(WINDOW, 1 / RATE).astype(np.float64)
    corners = np.linspace(float(mel(40.0)), float(mel(RATE / 2)), MEL_BANDS + 2)
    left, middle, right = (corners[i : MEL_BANDS + i, None] for i in range(3))
    rising, falling = (mel(hz) - left) / (middle - left), (right - mel(hz)) / (right - middle)
    return np.maximum(0.0, np.minimum(rising, falling))
