"""Generated sound as 16-bit samples: peak level, exact length, WAV files."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from ..errors import ThinkSoundError
from .files import whole_file


def to_pcm16(waveform: Tensor) -> Tensor:
    """Scale sound so that its peak is full scale, as upstream does; silence stays silence.

    Args:
        waveform: float (2, A).

    Returns:
        int16 (2, A).

    Raises:
        ThinkSoundError: the waveform holds NaN or infinity.
    """
    waveform = waveform.float()
    peak = waveform.abs().max()  # NaN and infinity both arrive here
    if not torch.isfinite(peak):
        raise ThinkSoundError(
            "the generated sound holds values that are not numbers; "
            "try a more precise number format (--dtype float32) or another seed"
        )
    if peak == 0:
        return torch.zeros_like(waveform, dtype=torch.int16)
    return waveform.div(peak).clamp(-1, 1).mul(32767).to(torch.int16)


def fit_length(pcm16: Tensor, samples: int, hop: int) -> Tensor:
    """Cut sound to ``samples``, or fill the few that a rounded latent count leaves missing.

    The end is continued by its mirror image, fading to zero, so that there is no click. Samples that
    were generated stay as they are.

    Args:
        pcm16: int16 (2, A).
        samples: the length wanted; at most half a latent frame longer than A.
        hop: samples per latent frame.

    Returns:
        int16 (2, samples).
    """
    missing = samples - pcm16.shape[-1]
    if missing <= 0:
        return pcm16[:, :samples]
    assert missing <= hop // 2 < pcm16.shape[-1], (tuple(pcm16.shape), samples)
    mirrored = pcm16[:, -1 - missing : -1].flip(-1).float()  # (2, missing); the last sample is not repeated
    fade = torch.cos(torch.arange(1, missing + 1) * (torch.pi / 2 / missing)) ** 2  # 1 -> 0
    return torch.cat([pcm16, (mirrored * fade).round().to(torch.int16)], dim=-1)


def write_wav(path: Path | str, pcm16: Tensor, sample_rate: int) -> None:
    """Write int16 (2, A) as a WAV file, whole or not at all.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    encoded = io.BytesIO()  # the file itself is written in one piece, with errors that can be told apart
    soundfile.write(encoded, pcm16.T.cpu().numpy(), sample_rate, subtype="PCM_16", format="WAV")
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.getvalue())
