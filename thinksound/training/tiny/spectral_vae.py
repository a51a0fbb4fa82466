"""Training of the VAE on spectra: distance between spectral frames, and KL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...models.spectrogram_vae import SpectrogramVAE
from ...models.spectrum import SIDE_BANDS, analyse, frame_channels
from ..loop import Learner, Update, autocast
from ..options import check_betas, check_dtype, check_least, check_positive
from ..vae import Sounds


@dataclass(frozen=True)
class SpectralVAEOptions:
    batch: int = 16
    excerpt: int = 64  # latent frames
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    kl_weight: float = 1e-4
    amplitude_weight: float = 10.0
    side_weight: float = 1.0
    hearing: bool = False  # weight frequencies by the slope of the mel scale, low ones more
    dtype: str = "float32"  # of matrix products: float32 or bfloat16

    def __post_init__(self) -> None:
        check_least(self, 1, "batch", "excerpt")
        check_least(self, 0, "kl_weight", "amplitude_weight", "side_weight")
        check_positive(self, "learning_rate")
        check_betas(self.betas)
        check_dtype(self.dtype)


def mel_slope(sample_rate: int, bins: int) -> Tensor:
    """Mels per hertz, ``(bins, 1)``, at frequencies from 0 to half the sample rate; the mean is 1."""
    slope = 1 / (1 + torch.linspace(0, sample_rate / 2, bins)[:, None] / 700)
    return slope / slope.mean()


def frame_loss(
    found: Tensor, wanted: Tensor, options: SpectralVAEOptions, slope: Tensor | float = 1.0
) -> Tensor:
    """Squared distance of frames ``(B, C, N)``: levels (loud ones count more), amplitudes and panning.

    ``slope (F, 1)`` is the weight of each frequency.

    A ringing body is a few loud lines among hundreds of frequencies; amplitudes, to the power of one half,
    give them the weight that a mean over levels does not. Distances are squared because a line of uncertain
    frequency shows as a hump in the mean but not at all in the median, from which nothing is learned.
    """
    level, wanted_level = found[:, :-SIDE_BANDS], wanted[:, :-SIDE_BANDS]
    squares = (found - wanted).square()
    loudness = 1 + wanted_level  # 0 to 2
    total = (slope * squares[:, :-SIDE_BANDS] * (0.2 + loudness)).mean()
    amplitude = (10 ** (level.clamp(max=1) - 1) - 10 ** (wanted_level - 1)).square().mul(slope).mean()
    # Panning counts by loudness: silence has none.
    side = (squares[:, -SIDE_BANDS:] * loudness.mean(dim=1, keepdim=True)).mean()
    return total + options.amplitude_weight * amplitude + options.side_weight * side


class SpectralVAELearner(Learner):
    """Trains the VAE of the tiny preset."""

    averaged = ("vae",)

    def __init__(
        self, vae: SpectrogramVAE, options: SpectralVAEOptions, sounds: Sounds, seed: int = 0
    ) -> None:
        self.vae, self.options, self.sounds = vae, options, sounds
        self.device = next(vae.parameters()).device
        bins = frame_channels(vae.spectrum) - SIDE_BANDS
        self.slope = mel_slope(sounds.sample_rate, bins).to(self.device) if options.hearing else 1.0
        self.networks: dict[str, nn.Module] = {"vae": vae}
        self.optimizers = {
            "vae": torch.optim.AdamW(vae.parameters(), options.learning_rate, options.betas, weight_decay=0.0)
        }

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        options, vae = self.options, self.vae
        audio = self.sounds.batch(options.batch, options.excerpt * vae.hop, generator).to(self.device)
        noise = torch.randn(len(audio), vae.latent_dim, options.excerpt, generator=generator)
        frames = analyse(audio, vae.spectrum)
        with autocast(self.device, options.dtype):
            mean, scale = vae.encode_frames(frames)
            latents, divergence = vae.sample(mean.float(), scale.float(), noise.to(self.device))
            found = vae.decode_frames(latents).float()
        distance = frame_loss(found, frames, options, self.slope)
        norm = update(distance + options.kl_weight * divergence, self.optimizers["vae"])
        return {"frames": distance.item(), "kl": divergence.item(), "gradient": norm}

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        vae = cast(SpectrogramVAE, networks["vae"])
        audio = self.sounds.held_out(self.options.excerpt * vae.hop).to(self.device)
        losses = []
        for part in audio.split(self.options.batch):
            frames = analyse(part, vae.spectrum)
            mean, _ = vae.encode_frames(frames)
            losses.append(frame_loss(vae.decode_frames(mean), frames, self.options, self.slope))
        return {"frames": torch.stack(losses).mean().item()}


def initialise_spectrogram_vae(vae: SpectrogramVAE, seed: int) -> None:
    """Set initial values drawn from ``seed`` that keep the signal's power; residual branches start small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if parameter.dim() == 1:
                parameter.zero_()
            else:
                gain = 0.3 if name.endswith("conv2.weight") else 1.4
                parameter.normal_(0, gain * parameter[0].numel() ** -0.5, generator=generator)
        # Little posterior noise at first: training does not recover from latents that carry nothing.
        bias = vae.encoder.out.bias
        assert isinstance(bias, Tensor)
        bias[vae.latent_dim :] = -3.0


@torch.no_grad()
def standardise_spectrogram_vae(vae: SpectrogramVAE, deviation: Tensor) -> None:
    """Divide the latents by their standard deviation ``(C,)`` in the weights, as `vae.standardise` does."""
    last, first = vae.encoder.out, vae.decoder.enter
    assert isinstance(last, nn.Conv1d) and isinstance(first, nn.Conv1d) and last.bias is not None
    count = vae.latent_dim
    last.weight[:count] /= deviation[:, None, None]
    last.bias[:count] /= deviation
    last.bias[count:] -= deviation.log()
    first.weight *= deviation[None, :, None]
