"""Continuous sounds: engines, rain and sliding, each driven by its control curve."""

from __future__ import annotations

import numpy as np

from .kinds import ENGINE_HZ, KINDS
from .materials import MATERIALS
from .modal import filtered_noise, through_modes
from .scene import Curve, FloatArray, Source

_DROPS_PER_S = 900.0  # of the densest rain


def sustained(
    source: Source, control: Curve, samples: int, sample_rate: int, rng: np.random.Generator
) -> FloatArray:
    """A continuous source without its room: mono, float (A,), about 0.2 RMS where it is loudest."""
    values = control.at(np.arange(samples) / sample_rate)
    make = {"engine": _engine, "rain": _rain, "slide": _slide}[source.kind]
    return make(source, values, sample_rate, rng)


def _engine(source: Source, hz: FloatArray, sample_rate: int, rng: np.random.Generator) -> FloatArray:
    """Harmonics of the rotation, louder and brighter with speed, over noise that pulses with it."""
    phase = 2 * np.pi * np.cumsum(hz) / sample_rate
    speed = (hz - ENGINE_HZ[0]) / (ENGINE_HZ[1] - ENGINE_HZ[0])
    tone = np.zeros(len(hz))
    for k in range(1, 11):
        share = 1.0 if k == 1 else rng.uniform(0.4, 1.0)
        rolloff = k ** -(1.5 - 0.6 * speed)
        tone += (
            share * rolloff * (k * hz < 0.45 * sample_rate) * np.sin(k * phase + rng.uniform(0, 2 * np.pi))
        )
    hiss = filtered_noise(len(hz), 1800.0 / source.size, sample_rate, rng) * (1 + np.cos(phase)) / 2
    return (0.12 * tone + 0.05 * hiss) * (0.35 + 0.65 * speed)


def _rain(source: Source, density: FloatArray, sample_rate: int, rng: np.random.Generator) -> FloatArray:
    """Single drops at random times ring the roof, over the hiss of those too dense to tell apart."""
    falls = rng.random(len(density)) < density * _DROPS_PER_S / sample_rate
    drops = np.where(falls, rng.exponential(1.0, len(density)) * rng.choice([-1, 1], len(density)), 0.0)
    roof = through_modes(
        drops, MATERIALS[source.material], KINDS["rain"].pitch, source.size, sample_rate
    ) * np.sqrt(density)
    hiss = filtered_noise(len(density), 6000.0, sample_rate, rng)
    return 0.14 * roof + 0.03 * hiss * density


def _slide(source: Source, speed: FloatArray, sample_rate: int, rng: np.random.Generator) -> FloatArray:
    """Rough contact: noise through the body, brighter and louder with speed, pulsing along the way."""
    smooth = filtered_noise(len(speed), 700.0, sample_rate, rng)
    bright = filtered_noise(len(speed), 5000.0, sample_rate, rng)
    excitation = smooth * (1 - speed) + bright * speed
    way = np.cumsum(speed) / sample_rate
    grain = 1 + 0.5 * np.sin(2 * np.pi * 38 * way + rng.uniform(0, 2 * np.pi))
    body = through_modes(
        excitation, MATERIALS[source.material], KINDS["slide"].pitch, source.size, sample_rate
    )
    return 0.2 * (body + 0.25 * excitation) * grain * speed
