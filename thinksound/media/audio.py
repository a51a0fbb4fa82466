"""Turns generated sound into normalised 16-bit samples of exact length, and writes sound files."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ThinkSoundError
from .files import whole_file

MAX_GAIN_DB = 30.0  # of normalisation
_LONGEST_FADE = 1024  # samples; half a latent frame of ThinkSound


def to_pcm16(waveform: Tensor) -> Tensor:
    """Scale sound so that its peak is full scale, as the original does, but lift it by at most `MAX_GAIN_DB`.

    The limit deviates from the original: it would make the faint noise of a video without sound as loud as
    any sound. A peak of 0.032 and more reaches full scale; silence stays silence.

    Args:
        waveform: float (channels, A).

    Returns:
        int16 (channels, A).

    Raises:
        ThinkSoundError: the waveform holds NaN or infinity.
    """
    waveform = waveform.float()
    peak = waveform.abs().max()  # is NaN or infinite if any value is
    if not torch.isfinite(peak):
        raise ThinkSoundError(
            "the generated sound holds values that are not numbers; "
            "try a more precise dtype (--dtype float32) or another seed"
        )
    lowest = 10 ** (-MAX_GAIN_DB / 20)
    return waveform.div(peak.clamp_min(lowest)).clamp(-1, 1).mul(32767).to(torch.int16)


def fit_length(pcm16: Tensor, samples: int) -> Tensor:
    """Cut sound to ``samples``, or extend it where a rounded number of latent frames made it too short.

    The extension mirrors the end and fades it to zero, so that there is no click; the rest is silence. The
    generated samples do not change.

    Args:
        pcm16: int16 (channels, A).
        samples: the wanted length.

    Returns:
        int16 (channels, samples).
    """
    missing = samples - pcm16.shape[-1]
    if missing <= 0:
        return pcm16[:, :samples]
    length = min(missing, _LONGEST_FADE, pcm16.shape[-1] - 1)
    mirrored = pcm16[:, -1 - length : -1].flip(-1).float()  # (channels, length); without the last sample
    fade = torch.cos(torch.arange(1, length + 1) * (torch.pi / 2 / length)) ** 2  # 1 -> 0
    continued = torch.cat([pcm16, (mirrored * fade).round().to(torch.int16)], dim=-1)
    return F.pad(continued, (0, missing - length))


SOUND_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def write_sound(path: Path | str, pcm16: Tensor, sample_rate: int) -> None:
    """Write int16 (channels, A) as FLAC if the name ends in .flac, else as WAV.

    The file appears whole or not at all.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    kind = SOUND_FORMATS.get(Path(path).suffix.lower(), "WAV")
    encoded = io.BytesIO()  # Python's own errors in writing say what went wrong; soundfile's do not
    soundfile.write(encoded, pcm16.T.cpu().numpy(), sample_rate, subtype="PCM_16", format=kind)
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.getvalue())
