"""Spectral losses and the discriminator of the audio VAE.

Sources: multi-resolution STFT loss, https://arxiv.org/abs/1910.11480, on left, right, sum and
difference as in Stable Audio, https://arxiv.org/abs/2404.10301, section 3.1; multi-scale STFT
discriminator, hinge and feature-matching losses of EnCodec, https://arxiv.org/abs/2210.13438, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

FLOOR = 1e-4  # added to magnitudes before the logarithm: -80 dB of a full-scale tone


def stft(waveform: Tensor, size: int) -> Tensor:
    """Complex spectra ``(B, C, F, T)`` of ``waveform (B, C, A)``; a full-scale sine has magnitude 0.5."""
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(
        waveform.float().flatten(0, 1), size, size // 4, window=window, center=True, return_complex=True
    )
    return (spectrum / window.sum()).unflatten(0, waveform.shape[:2])


def spectral_loss(result: Tensor, target: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Log-magnitude distance plus spectral convergence, mean over STFT sizes, of stereo ``(B, 2, A)``."""
    total = result.new_zeros(())
    for size in sizes:
        found, wanted = (stft(_with_sum_and_difference(wave), size).abs() for wave in (result, target))
        logarithms = (torch.log(found + FLOOR) - torch.log(wanted + FLOOR)).abs().mean()
        # Over the whole batch, because the error of a silent excerpt alone would be relative to zero.
        distance = torch.linalg.vector_norm(found - wanted)
        convergence = distance / torch.linalg.vector_norm(wanted).clamp_min(1e-3)
        total = total + logarithms + convergence
    return total / len(sizes)


def _with_sum_and_difference(stereo: Tensor) -> Tensor:
    left, right = stereo.float().unbind(1)
    return torch.stack([left, right, (left + right) / 2, (left - right) / 2], dim=1)


class SpectrumDiscriminator(nn.Module):
    """A discriminator on complex spectra of one size: stereo ``(B, 2, A)`` to logits and features."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.size = size

        def convolution(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Module:
            return weight_norm(
                nn.Conv2d(inputs, outputs, (3, 9), (1, stride), padding=(dilation, 4), dilation=(dilation, 1))
            )

        self.layers = nn.ModuleList(
            [
                convolution(4, channels, 2, 1),
                convolution(channels, channels, 2, 1),
                convolution(channels, channels, 2, 2),
                convolution(channels, channels, 2, 4),
            ]
        )
        self.head = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = stft(waveform, self.size)  # (B, 2, F, T)
        # Magnitudes are raised to the power 0.3, so that the quiet tail of a sound counts too.
        magnitude = spectrum.abs().clamp_min(1e-6)
        spectrum = spectrum * magnitude**-0.7
        x = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)  # (B, 4, T, F)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.head(x), features


class Discriminator(nn.Module):
    """Spectrum discriminators of several sizes."""

    def __init__(self, sizes: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.judges = nn.ModuleList(SpectrumDiscriminator(size, channels) for size in sizes)

    def forward(self, waveform: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [judge(waveform) for judge in self.judges]


Verdicts = list[tuple[Tensor, list[Tensor]]]


def discriminator_loss(real: Verdicts, fake: Verdicts) -> Tensor:
    """Hinge loss: 0 if real logits are above 1 and fake ones below -1."""
    losses = [
        F.relu(1 - a.float()).mean() + F.relu(1 + b.float()).mean()
        for (a, _), (b, _) in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_loss(fake: Verdicts) -> Tensor:
    return torch.stack([-logits.float().mean() for logits, _ in fake]).mean()


def feature_matching_loss(real: Verdicts, fake: Verdicts) -> Tensor:
    """Mean distance of the discriminators' features, relative to the mean magnitude of the real ones."""
    losses = [
        (a.detach().float() - b.float()).abs().mean() / a.detach().float().abs().mean().clamp_min(1e-3)
        for (_, reals), (_, fakes) in zip(real, fake, strict=True)
        for a, b in zip(reals, fakes, strict=True)
    ]
    return torch.stack(losses).mean()
