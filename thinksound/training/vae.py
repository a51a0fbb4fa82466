"""Training of the audio VAE: spectral reconstruction, KL and, from a chosen step on, a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..models.oobleck import AudioVAE, ResidualUnit, WeightNormConv, WeightNormConvTranspose
from .loop import Learner, Update, autocast, seeded
from .options import check_betas, check_dtype, check_least, check_positive
from .spectral import (
    Discriminator,
    Verdicts,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    spectral_loss,
)


class Sounds(Protocol):
    """Where training excerpts come from."""

    sample_rate: int  # Hz

    def batch(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        """Excerpts ``(count, 2, samples)`` float32, drawn with ``generator``."""

    def held_out(self, samples: int) -> Tensor:
        """The same excerpts ``(N, 2, samples)`` each time, of sounds that `batch` never gives."""


@dataclass(frozen=True)
class VAEOptions:
    """Training of the VAE; loss weights are those of Stable Audio (https://arxiv.org/abs/2404.10301)."""

    batch: int = 8
    excerpt: int = 32  # latent frames
    learning_rate: float = 1e-4
    discriminator_rate: float = 2e-4
    betas: tuple[float, float] = (0.8, 0.99)
    spectral_sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128, 64, 32)
    discriminator_sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    discriminator_channels: int = 32
    adversarial_from: int = 0  # first step in which the discriminator trains and its losses count
    spectral_weight: float = 1.0
    adversarial_weight: float = 0.1
    feature_weight: float = 5.0
    kl_weight: float = 1e-4
    dtype: str = "float32"  # of matrix products: float32 or bfloat16

    def __post_init__(self) -> None:
        check_least(self, 1, "batch", "excerpt", "discriminator_channels")
        weights = ("spectral_weight", "adversarial_weight", "feature_weight", "kl_weight")
        check_least(self, 0, "adversarial_from", *weights)
        check_positive(self, "learning_rate", "discriminator_rate")
        check_betas(self.betas)
        check_dtype(self.dtype)


class VAELearner(Learner):
    """Trains the VAE and its discriminator."""

    averaged = ("vae",)

    def __init__(self, vae: AudioVAE, options: VAEOptions, sounds: Sounds, seed: int = 0) -> None:
        self.options, self.sounds = options, sounds
        self.device = next(vae.parameters()).device
        discriminator = seeded(
            lambda: Discriminator(options.discriminator_sizes, options.discriminator_channels), seed
        ).to(self.device)
        self.vae, self.discriminator = vae, discriminator
        self.networks: dict[str, nn.Module] = {"vae": vae, "discriminator": discriminator}
        self.optimizers = {
            "vae": torch.optim.AdamW(
                vae.parameters(), options.learning_rate, options.betas, weight_decay=0.0
            ),
            "discriminator": torch.optim.AdamW(
                discriminator.parameters(), options.discriminator_rate, options.betas, weight_decay=0.0
            ),
        }

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        options = self.options
        target = self.sounds.batch(options.batch, options.excerpt * self.vae.config.hop, generator).to(
            self.device
        )
        noise = torch.randn(len(target), self.vae.config.latent_dim, options.excerpt, generator=generator).to(
            self.device
        )
        adversarial = step >= options.adversarial_from

        with autocast(self.device, options.dtype):
            mean, scale = self.vae.encode(target)
            latents, divergence = self.vae.sample(mean.float(), scale.float(), noise)
            result = self.vae.decoder(latents)
        spectral = spectral_loss(result, target, options.spectral_sizes)
        loss = options.spectral_weight * spectral + options.kl_weight * divergence
        row = {"spectral": spectral.item(), "kl": divergence.item()}

        if adversarial:
            with autocast(self.device, options.dtype):
                both = self.discriminator(torch.cat([target, result.detach().float()]))
            real, fake = _halves(both)
            judging = discriminator_loss(real, fake)
            update(judging, self.optimizers["discriminator"])
            with autocast(self.device, options.dtype):
                self.discriminator.requires_grad_(False)
                fake = self.discriminator(result.float())
                self.discriminator.requires_grad_(True)
            fooling, matching = adversarial_loss(fake), feature_matching_loss(real, fake)
            loss = loss + options.adversarial_weight * fooling + options.feature_weight * matching
            row |= {
                "discriminator": judging.item(),
                "adversarial": fooling.item(),
                "features": matching.item(),
            }
        row["gradient"] = update(loss, self.optimizers["vae"])
        return row

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        vae = cast(AudioVAE, networks["vae"])
        target = self.sounds.held_out(self.options.excerpt * vae.config.hop).to(self.device)
        losses = []
        for part in target.split(self.options.batch):
            mean, _ = vae.encode(part)
            losses.append(spectral_loss(vae.decoder(mean), part, self.options.spectral_sizes))
        return {"spectral": torch.stack(losses).mean().item()}


def _halves(verdicts: Verdicts) -> tuple[Verdicts, Verdicts]:
    """Split verdicts on a batch of real and then fake sound into the two."""
    split = [(logits.chunk(2), [feature.chunk(2) for feature in features]) for logits, features in verdicts]
    real = [(logits[0], [feature[0] for feature in features]) for logits, features in split]
    fake = [(logits[1], [feature[1] for feature in features]) for logits, features in split]
    return real, fake


def _gain(convolution: nn.Module) -> Tensor:
    assert isinstance(convolution, WeightNormConv)
    return convolution.weight_g


def initialise_vae(vae: AudioVAE, seed: int) -> None:
    """Set initial values: directions drawn from ``seed``, gains that keep the signal's power."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WeightNormConv):
                outputs, inputs, size = module.weight_v.shape
                transposed = isinstance(module, WeightNormConvTranspose)
                # Each output of a transposed convolution with kernel 2s and stride s sums two taps.
                fan_in = 2 * outputs if transposed else inputs * size
                module.weight_v.normal_(generator=generator).div_(fan_in**0.5)
                module.weight_g.copy_(torch.linalg.vector_norm(module.weight_v, dim=(1, 2), keepdim=True))
        # Residual branches start small, so that depth does not raise the level.
        for unit in vae.modules():
            if isinstance(unit, ResidualUnit):
                _gain(unit.layers[-1]).mul_(0.3)
        # Little posterior noise at first: training does not recover from latents that carry nothing.
        last = vae.encoder.layers[-1]
        assert isinstance(last, WeightNormConv) and last.bias is not None
        last.bias[vae.config.latent_dim :] = -3.0
        # Start near silence: sounds are quiet, and getting there from loud noise takes long.
        _gain(vae.decoder.layers[-1]).mul_(0.02)


@torch.no_grad()
def latent_deviation(vae: Any, sounds: Sounds, samples: int, batch: int = 8) -> Tensor:
    """Standard deviation ``(C,)`` of each latent channel over 256 excerpts of ``samples`` samples.

    ``batch`` excerpts are encoded at once.
    """
    excerpts = sounds.batch(256, samples, torch.Generator().manual_seed(0))
    return torch.cat([vae.encode(part)[0] for part in excerpts.split(batch)]).std(dim=(0, 2))


@torch.no_grad()
def standardise(vae: AudioVAE, deviation: Tensor) -> None:
    """Divide the latents by their standard deviation ``(C,)``, in the weights; the sound stays the same.

    Rectified flow starts from noise of deviation 1 and learns best if the latents have it too. The deviation
    of the posterior is softplus(raw); shifting ``raw`` divides it exactly only where it is small, which is
    where training puts it.
    """
    last = vae.encoder.layers[-1]
    first = vae.decoder.layers[0]
    assert isinstance(last, WeightNormConv) and isinstance(first, WeightNormConv)
    channels = vae.config.latent_dim
    last.weight_g[:channels] /= deviation[:, None, None]
    assert last.bias is not None
    last.bias[:channels] /= deviation
    last.bias[channels:] -= deviation.log()
    weight = first.weight() * deviation[None, :, None]
    first.weight_v.copy_(weight)
    first.weight_g.copy_(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))
