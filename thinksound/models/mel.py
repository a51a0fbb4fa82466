"""Log-mel spectrograms of sound, the input of MMAudio's VAE and vocoder.

Source: MMAudio, https://arxiv.org/abs/2412.15322; the settings are those of the two BigVGAN vocoders
(https://arxiv.org/abs/2206.04658). The mel scale is Slaney's (linear up to 1 kHz, then logarithmic) and each
band has unit area, as in librosa.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

FLOOR = 1e-5  # smallest magnitude of a band, before the logarithm
_LINEAR_HZ = 200 / 3  # Hz per mel below the knee
_KNEE_HZ = 1000.0
_STEP = math.log(6.4) / 27  # increase of ln(Hz) per mel above the knee


@dataclass(frozen=True)
class MelConfig:
    """Settings of a mel spectrogram; a frame starts every ``hop`` samples."""

    sample_rate: int  # Hz
    window: int  # samples of a frame and of its Fourier transform
    hop: int  # samples between frames
    bands: int
    highest_hz: float  # the lowest band begins at 0 Hz
    logarithm: Literal["log10", "ln"]

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window or (self.window - self.hop) % 2:
            raise InputError(f"window {self.window} must exceed hop {self.hop} by an even number")
        if not 0 < self.highest_hz <= self.sample_rate / 2:
            raise InputError(f"highest_hz {self.highest_hz:g} is above half of {self.sample_rate} Hz")
        if self.bands < 1:
            raise InputError(f"bands {self.bands} must be at least 1")


MEL_16K = MelConfig(16_000, window=1024, hop=256, bands=80, highest_hz=8000.0, logarithm="log10")
MEL_44K = MelConfig(44_100, window=2048, hop=512, bands=128, highest_hz=22_050.0, logarithm="ln")


def log_mel(audio: Tensor, config: MelConfig) -> Tensor:
    """Returns the log-mel spectrogram ``(B, bands, A // hop)`` float32 of mono ``audio (B, 1, A)``.

    Samples are clipped to -1..1. The ends are padded by reflection, so A must be greater than
    ``(window - hop) / 2``: 384 samples at 16 kHz, 768 at 44.1 kHz.
    """
    edge = (config.window - config.hop) // 2
    padded = F.pad(audio.float().clamp(-1, 1), (edge, edge), mode="reflect")[:, 0]
    window = torch.hann_window(config.window, device=audio.device)
    spectra = torch.stft(
        padded, config.window, config.hop, window=window, center=False, return_complex=True
    )  # (B, F, N)
    magnitudes = (spectra.real.square() + spectra.imag.square() + 1e-9).sqrt()
    mel = (mel_filters(config).to(audio.device) @ magnitudes).clamp_min(FLOOR)
    return mel.log10() if config.logarithm == "log10" else mel.log()


def mel_filters(config: MelConfig) -> Tensor:
    """Returns the weights ``(bands, window / 2 + 1)`` float32 of frequencies in triangular bands."""
    hz = torch.linspace(0, config.sample_rate / 2, config.window // 2 + 1, dtype=torch.float64)
    top = _mel(torch.tensor(config.highest_hz, dtype=torch.float64)).item()
    corners = _hertz(torch.linspace(0, top, config.bands + 2, dtype=torch.float64))[:, None]
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (hz - left) / (middle - left), (right - hz) / (right - middle)
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * 2 / (right - left)).float()


def _mel(hz: Tensor) -> Tensor:
    above = _KNEE_HZ / _LINEAR_HZ + (hz.clamp_min(_KNEE_HZ) / _KNEE_HZ).log() / _STEP
    return torch.where(hz < _KNEE_HZ, hz / _LINEAR_HZ, above)


def _hertz(mel: Tensor) -> Tensor:
    knee = _KNEE_HZ / _LINEAR_HZ
    above = _KNEE_HZ * ((mel.clamp_min(knee) - knee) * _STEP).exp()
    return torch.where(mel < knee, mel * _LINEAR_HZ, above)
