"""The true sound of a scene: its sources, panned and with the reflections of the room."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kinds import KINDS
from .materials import MATERIALS
from .modal import filtered_noise, strike
from .scene import Event, FloatArray, Room, Scene, Source, pan_of
from .sustained import sustained

SAMPLE_RATE = 44100
_PEAK = 0.9  # louder clips are scaled down to it, quieter ones stay as they are


def synthesise(scene: Scene, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """The sound of a scene, exactly as long as its frames.

    Args:
        scene: what sounds.
        sample_rate: in Hz, 8000 or more.

    Returns:
        float32 (2, A), peak below 1. Nothing sounds before its onset.
    """
    samples = scene.sample_count(sample_rate)
    sound = np.zeros((2, samples))
    for source in scene.sources:
        sound += source.gain * _stereo(source, samples, sample_rate)
    sound += _reflections(sound, scene.room, sample_rate, np.random.default_rng([scene.seed, 17]))
    peak = float(np.abs(sound).max())
    return (sound * (_PEAK / max(peak, _PEAK))).astype(np.float32)


def constant_power(pan: float | FloatArray) -> FloatArray:
    """Gains of left and right, (2, ...): their squares sum to 1 for every pan from -1 to 1."""
    angle = (np.asarray(pan) + 1) * np.pi / 4
    return np.stack([np.cos(angle), np.sin(angle)])


def _stereo(source: Source, samples: int, sample_rate: int) -> FloatArray:
    rng = np.random.default_rng(source.seed)
    if source.control is not None:
        pan = pan_of(source.x.at(np.arange(samples) / sample_rate))
        return constant_power(pan) * sustained(source, source.control, samples, sample_rate, rng)
    sound = np.zeros((2, samples))
    for index, event in enumerate(source.events):
        start = round(event.onset_s * sample_rate)
        hit = _impact(source, event, index, sample_rate, rng)[: samples - start]
        sound[:, start : start + len(hit)] += 0.5 * constant_power(event.pan)[:, None] * hit
    return sound


def _impact(
    source: Source, event: Event, index: int, sample_rate: int, rng: np.random.Generator
) -> FloatArray:
    """One impact, (A,): the body's modes, and the sound that its kind adds."""
    kind = KINDS[source.kind]
    pitch = kind.pitch
    if source.kind == "clock":
        pitch *= 0.84 if index % 2 else 1.0  # tick, tock
    material, size = MATERIALS[source.material], source.size
    hit = strike(material, pitch, kind.ring, size, event.strength, sample_rate, rng)
    t = np.arange(len(hit)) / sample_rate
    if source.kind == "drops":  # the bubble of the water: a chirp upwards
        hit *= 0.6
        hit += 0.6 * event.strength * np.sin(2 * np.pi * (900 * t + 9000 * t**2)) * np.exp(-t / 0.018)
    elif source.kind == "footsteps":  # the sole rolls over the floor
        scuff = filtered_noise(len(hit), 900.0, sample_rate, rng)
        hit += 0.3 * event.strength * scuff * np.exp(-t / 0.025)
    elif source.kind == "hammer":  # the head's own weight
        hit += 0.5 * event.strength * np.sin(2 * np.pi * 95 / source.size * t) * np.exp(-t / 0.03)
    elif source.kind == "clock":  # the tooth of the gear, the same in every case
        tooth = np.sin(2 * np.pi * 5200 * t) * np.exp(-t / 0.005)
        hit += 0.6 * event.strength * (tooth + np.sin(2 * np.pi * 3300 * t) * np.exp(-t / 0.008))
    elif source.kind == "ball":  # the floor gives way a little
        hit += 0.35 * event.strength * np.sin(2 * np.pi * 170 * t) * np.exp(-t / 0.015)
    return hit


def _reflections(sound: FloatArray, room: Room, sample_rate: int, rng: np.random.Generator) -> FloatArray:
    """The reflections (2, A) of a sound: six early ones, and a tail that decays by 60 dB within the T60."""
    if not room.wet:
        return np.zeros_like(sound)
    length = round(room.t60_s * sample_rate)
    t = np.arange(length) / sample_rate
    first = 0.004 + 0.010 * room.t60_s  # seconds; later in a larger room
    tail = rng.standard_normal((2, length)) * np.exp(-6.91 * t / room.t60_s) * (t > 2 * first)
    response = tail / np.sqrt((tail**2).sum(axis=1, keepdims=True))
    for delay in first * rng.uniform(1.0, 5.0, 6):
        response[:, round(delay * sample_rate) % length] += rng.uniform(0.1, 0.5, 2)
    samples = 1 << (sound.shape[1] + length).bit_length()
    spectrum = np.fft.rfft(sound, samples) * np.fft.rfft(response, samples)
    return room.wet * 2 * np.fft.irfft(spectrum, samples)[:, : sound.shape[1]]
