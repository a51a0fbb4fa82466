"""DeSync: the offset between sound and video in seconds, as Synchformer predicts it.

Synchformer, https://arxiv.org/abs/2401.16423; as a measure of generated sound: MMAudio,
https://arxiv.org/abs/2412.15322, section 4. The first and the last 4.8 s of a clip each get the likeliest
of 21 offsets from -2 to 2 s; DeSync is the mean of their absolute values over all clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...encoders.sync import encode_sync
from ...errors import MediaError
from ...models.synchformer import SYNC_FPS, SYNC_SEGMENT, SYNC_STRIDE, sync_segment_count
from ...models.synchformer_offset import SynchformerOffset

RATE = 16_000  # Hz
SEGMENT = SYNC_SEGMENT * RATE // SYNC_FPS  # 10240 samples: the sound of one segment of frames
STRIDE = SYNC_STRIDE * RATE // SYNC_FPS  # 5120 samples between the starts of two segments
LARGEST_OFFSET_S = 2.0

# The spectrogram that the audio tower was trained on.
_TRANSFORM = 1_024  # samples of a Fourier transform, around the window
_WINDOW = 400  # samples: 25 ms
_HOP = 160  # 10 ms
_SMALLEST = 1e-6  # added to every power before its logarithm
_MEAN, _SPREAD = -4.2677393, 2 * 4.5689974


def offset_grid(classes: int) -> list[float]:
    """The offset in seconds of each class; above zero, the sound is early."""
    return [round(LARGEST_OFFSET_S * (2 * index / (classes - 1) - 1), 6) for index in range(classes)]


@torch.inference_mode()
def predict_offsets(network: SynchformerOffset, sync_frames: Tensor, waveform: Tensor) -> tuple[float, float]:
    """Offsets in seconds of the first and last 4.8 s of a clip; positive if the sound is early.

    sync_frames: uint8 ``(S', 224, 224, 3)``, 25 per second; waveform: ``(A,)`` at 16 kHz. Both start at the
        same time, and the longer one is cut.
    Raises MediaError for a clip of less than 4.8 s.
    """
    device = next(network.parameters()).device
    needed = network.config.segments
    heard = max(0, (len(waveform) - SEGMENT) // STRIDE + 1)
    count = min(sync_segment_count(len(sync_frames)), heard)
    if count < needed:
        together_s = min(len(sync_frames) / SYNC_FPS, len(waveform) / RATE)
        needed_s = ((needed - 1) * STRIDE + SEGMENT) / RATE
        raise MediaError(f"{together_s:.2f} s of picture and sound; DeSync needs {needed_s:g} s")
    pictures = sync_frames[: (count - 1) * SYNC_STRIDE + SYNC_SEGMENT]
    visual = encode_sync(network.vfeat_extractor, pictures).unflatten(0, (count, -1))  # (N, 8, D)
    segments = waveform.unfold(0, SEGMENT, STRIDE)[:count].to(device)  # (N, 10240)
    spectrograms = log_mel(segments, network.config.mel_bins, network.config.mel_frames)
    audio = network.afeat_extractor(spectrograms)  # (N, 6, D)
    ends = (slice(None, needed), slice(-needed, None))
    logits = network(
        torch.stack([visual[end] for end in ends]), torch.stack([audio[end] for end in ends])
    )  # (2, 21)
    grid = offset_grid(logits.shape[-1])
    first, last = logits.argmax(dim=-1).tolist()
    return grid[first], grid[last]


def log_mel(segments: Tensor, bins: int, frames: int) -> Tensor:
    """Log-mel spectrograms ``(N, bins, frames)`` of segments ``(N, A)`` at 16 kHz, for the audio tower.

    They are padded to ``frames`` with the logarithm 0, not with silence, as in training.
    """
    window = torch.hann_window(_WINDOW, device=segments.device)
    spectrum = torch.stft(
        segments, _TRANSFORM, _HOP, _WINDOW, window, center=True, pad_mode="reflect", return_complex=True
    )
    power = spectrum.abs().square()  # (N, F, T)
    logarithms = torch.log(_mel_filters(bins).to(segments.device) @ power + _SMALLEST)
    missing = frames - logarithms.shape[-1]
    assert missing >= 0, (tuple(logarithms.shape), frames)
    return (torch.nn.functional.pad(logarithms, (0, missing)) - _MEAN) / _SPREAD


def _mel_filters(bins: int) -> Tensor:
    """Triangular filters ``(bins, F)`` of height 1, equally spaced on the mel scale from 0 Hz to 8 kHz."""
    corner_mels = torch.linspace(0, 2595 * torch.log10(torch.tensor(1 + RATE / 2 / 700)), bins + 2)
    corners = 700 * (10 ** (corner_mels / 2595) - 1)  # Hz
    frequencies = torch.linspace(0, RATE / 2, _TRANSFORM // 2 + 1)
    left, middle, right = (corners[first : bins + first, None] for first in range(3))
    rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0)
