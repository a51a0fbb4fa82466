"""Modal synthesis: impacts whose modes decay over contact noise, and steady sounds through a body."""

from __future__ import annotations

import numpy as np

from .materials import Material
from .scene import FloatArray

_MAX_S = 1.6


def modes(material: Material, pitch: float, size: float, sample_rate: int) -> tuple[FloatArray, FloatArray]:
    """Frequencies in Hz (M,) below 0.45 of the sample rate, and their T60 in seconds (M,).

    A larger body rings lower and longer.
    """
    ratios = np.array(material.ratios)
    hz = material.base_hz * pitch / size * ratios
    t60 = material.t60_s * size / (1 + material.damping * (ratios - 1))
    heard = hz < 0.45 * sample_rate
    return hz[heard], t60[heard]


def strike(
    material: Material,
    pitch: float,
    ring: float,
    size: float,
    strength: float,
    sample_rate: int,
    rng: np.random.Generator,
) -> FloatArray:
    """The sound of one impact, float (A,); level and brightness grow with the strength.

    ``pitch`` and ``ring`` scale the frequencies and decay times of the material's modes. The levels of the
    modes vary a little, because no two blows fall on the same spot.
    """
    hz, t60 = modes(material, pitch, size, sample_rate)
    t60 *= ring
    samples = round(min(_MAX_S, max(1.1 * float(t60.max()), 0.08)) * sample_rate)
    t = np.arange(samples) / sample_rate
    cutoff = material.brightness_hz * (0.35 + 0.65 * strength)
    level = 1 / (1 + (hz / cutoff) ** 2) * rng.uniform(0.6, 1.0, len(hz))
    level /= np.sqrt((level**2).sum())
    # exp(-6.91 t / T60) is -60 dB at T60; a cosine starts at its peak, as a struck body's acceleration does.
    rings = np.cos(2 * np.pi * hz[:, None] * t) * np.exp(-6.91 * t / t60[:, None])  # (M, A)
    contact = filtered_noise(samples, cutoff, sample_rate, rng) * np.exp(-t / 0.004)
    sound = level @ rings + material.click * 4 * contact
    sound[-(samples // 10) :] *= np.linspace(1, 0, samples // 10)
    return sound * strength**0.8


def filtered_noise(samples: int, cutoff: float, sample_rate: int, rng: np.random.Generator) -> FloatArray:
    """Noise (A,) of RMS 1, flat up to about ``cutoff`` Hz and falling by 12 dB per octave above it."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hz = np.fft.rfftfreq(samples, 1 / sample_rate)
    sound = np.fft.irfft(spectrum / (1 + (hz / cutoff) ** 2), samples)
    return sound / max(float(sound.std()), 1e-9)


def through_modes(sound: FloatArray, material: Material, pitch: float, size: float, rate: int) -> FloatArray:
    """Filter a steady excitation (A,) by a body's modes; the more damped a mode, the wider its resonance.

    The result has RMS 1.
    """
    hz, t60 = modes(material, pitch, size, rate)
    samples = 1 << (2 * len(sound) - 1).bit_length()
    at = np.fft.rfftfreq(samples, 1 / rate)
    width = 25.0 + 2.2 / t60  # Hz, at half the power
    peaks = 1 / (1 + ((at - hz[:, None]) / width[:, None]) ** 2)  # (M, F)
    body = peaks.T @ (1 / (1 + hz / material.brightness_hz)) + 0.03 / (1 + (at / material.brightness_hz) ** 2)
    result = np.fft.irfft(np.fft.rfft(sound, samples) * body, samples)[: len(sound)]
    return result / max(float(result.std()), 1e-9)
