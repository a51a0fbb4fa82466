"""Spectrograms of stereo sound for the VAE of the tiny preset, and sound from spectrograms.

A spectrogram frame has the log magnitude of every frequency, common to both channels, and the panning of
every band. Phases are not stored: `synthesise` finds them (Griffin-Lim, doi 10.1109/TASSP.1984.1164317, with
the momentum of doi 10.1109/WASPAA.2013.6701851). So a small network need not learn oscillations over hundreds
of samples. In return, the waveform differs from the original, and both channels get the same phases.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-4  # added to magnitudes; a full-scale tone has a magnitude of 0.5
SIDE_BANDS = 16  # bands with a panning
ITERATIONS = 24
MOMENTUM = 0.9


def frame_channels(size: int) -> int:
    """Returns the channels of a spectrogram frame for spectra of ``size`` samples."""
    return size // 2 + 1 + SIDE_BANDS


def analyse(audio: Tensor, size: int) -> Tensor:
    """Stereo ``audio (B, 2, A)`` to frames ``(B, size / 2 + 17, N)``, one per ``size / 4`` samples.

    Levels run from -1 (silence) to 1 (full scale), panning from -1 (left) to 1 (right).
    """
    spectra = _stft(audio.float(), size)[..., :-1]  # (B, 2, F, N)
    power = spectra.abs().square()
    level = 1 + torch.log10(power.mean(dim=1).sqrt() + FLOOR) / 2
    left, right = _bands(power).unbind(1)
    side = (right - left) / (right + left + FLOOR**2)
    return torch.cat([level, side], dim=1)


def synthesise(frames: Tensor, size: int) -> Tensor:
    """Spectrogram frames to stereo ``(B, 2, A)`` float32 with their levels and panning.

    Phases start from random values with a fixed seed, so equal frames give equal sound.
    """
    level, side = frames.float().split([size // 2 + 1, SIDE_BANDS], dim=1)
    magnitude = (10 ** (2 * (level.clamp(-1, 1) - 1)) - FLOOR).clamp_min(0)  # (B, F, N)
    magnitude = F.pad(magnitude, (0, 1), mode="replicate")
    side = F.pad(_from_bands(side.clamp(-1, 1), size), (0, 1), mode="replicate")
    generator = torch.Generator().manual_seed(0)
    angles = 2 * torch.pi * torch.rand(magnitude.shape[1:], generator=generator).to(frames.device)
    phases = torch.polar(torch.ones_like(angles), angles).expand(magnitude.shape)
    previous = torch.zeros_like(phases)
    for _ in range(ITERATIONS):
        rebuilt = _stft(_istft(magnitude * phases, size)[:, None], size)[:, 0]
        pushed = rebuilt - MOMENTUM / (1 + MOMENTUM) * previous
        phases = pushed / pushed.abs().clamp_min(1e-12)
        previous = rebuilt
    gains = torch.stack([1 - side, 1 + side], dim=1).sqrt()  # (B, 2, F, N + 1): powers sum to 2
    stereo = gains * (magnitude * phases)[:, None]
    return _istft(stereo.flatten(0, 1), size).unflatten(0, (len(frames), 2))


def _window(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


def _stft(audio: Tensor, size: int) -> Tensor:
    """``(B, C, A)`` to ``(B, C, F, A / hop + 1)``; a full-scale tone has a magnitude of 0.5."""
    window = _window(size, audio.device)
    spectra = torch.stft(
        audio.flatten(0, 1),
        size,
        size // 4,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return (spectra / window.sum()).unflatten(0, audio.shape[:2])


def _istft(spectra: Tensor, size: int) -> Tensor:
    """``(B, F, N + 1)`` to ``(B, N * hop)``."""
    window = _window(size, spectra.device)
    return torch.istft(spectra * window.sum(), size, size // 4, window=window, center=True)


def _edges(bins: int) -> list[int]:
    """Returns the edges of the panning bands, in bins: from 0 to 6, then logarithmically spaced."""
    edges = torch.logspace(0.8, torch.log10(torch.tensor(float(bins))).item(), SIDE_BANDS).round().int()
    return [0, *edges.tolist()]


def _bands(power: Tensor) -> Tensor:
    """Sums over the panning bands: ``(B, 2, F, N)`` to ``(B, 2, 16, N)``."""
    edges = _edges(power.shape[2])
    parts = [power[:, :, a:b].sum(dim=2) for a, b in pairwise(edges)]
    return torch.stack(parts, dim=2)


def _from_bands(side: Tensor, size: int) -> Tensor:
    """Repeats each band's value at all its frequencies: ``(B, 16, N)`` to ``(B, F, N)``."""
    edges = torch.tensor(_edges(size // 2 + 1), device=side.device)
    return side.repeat_interleave(edges.diff(), dim=1)


def to_picture(frames: Tensor, size: int) -> Tensor:
    """Frames ``(B, size / 2 + 17, N)`` to images of level and panning, ``(B, 2, size / 2, N)``."""
    level, side = frames.split([size // 2 + 1, SIDE_BANDS], dim=1)
    return torch.stack([level, _from_bands(side, size)], dim=1)[:, :, :-1]


def from_picture(picture: Tensor, size: int) -> Tensor:
    """Inverts `to_picture`: repeats the highest frequency, and averages the panning of each band."""
    whole = torch.cat([picture, picture[:, :, -1:]], dim=2)
    edges = _edges(size // 2 + 1)
    sides = [whole[:, 1, a:b].mean(dim=1) for a, b in pairwise(edges)]
    return torch.cat([whole[:, 0], torch.stack(sides, dim=1)], dim=1)
