"""Training of MMAudio's VAE: distance of log-mel spectrograms, KL, and from some step on a discriminator.

Sources: MMAudio, https://arxiv.org/abs/2412.15322, appendix, whose authors say that they train it as
Make-An-Audio 2, https://arxiv.org/abs/2305.18474, with 512 excerpts in a step, 300 000 steps, a learning
rate of 2e-3 and the discriminator from step 20 001 on (hkchengrex/MMAudio, issues 53 and 69). From there are
the mean absolute distance, the KL weight, betas, excerpts of 624 frames, and the discriminator's share: as
strong a gradient at the decoder's last convolution as the distance has. The discriminator differs: hinge loss
and weight norm, as in the training of the other VAEs here, in place of squares, batch norm and a penalty on
its gradient.

Weights keep their size, as in EDM2, https://arxiv.org/abs/2312.02696, section 2.3. There an optimizer
changes weights of size one per value, which the network divides by the root of the number of values that a
channel sums; a step along a weight would be undone by its normalisation and is left out, and after each
step the weights get their size back. The network here holds the weights as they are used. On those the
same is done with a learning rate that is divided by that root. So training goes as it would on the
published form, from published weights too, and what is exported is what other commands use. Averaged weights
are shorter than those that they are the average of, and get their size back as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ..models.mel import MelConfig, log_mel
from ..models.mel_vae import MelVAE
from .loop import Learner, Update, autocast, seeded
from .options import check_betas, check_dtype, check_least, check_positive
from .spectral import Verdicts, adversarial_loss, discriminator_loss
from .vae import Sounds

_STATISTICS_EXCERPTS = 256  # whose spectrograms are looked at before training from scratch
_LEAST_DEVIATION = 1e-2  # of a band; one that does not vary is not to be magnified
_LARGEST_SHARE = 1e4  # of the discriminator's gradient


@dataclass(frozen=True)
class MelVAEOptions:
    """The recipe; ``learning_rate`` is a tenth of the published one, for smaller steps."""

    batch: int = 8
    excerpt: int = 312  # latent frames
    learning_rate: float = 2e-4  # of weights of size one per value
    discriminator_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.9)
    discriminator_channels: int = 64
    adversarial_from: int = 20_000  # step from which the discriminator trains and is listened to
    adversarial_weight: float = 1.0  # gradient at the last convolution, relative to that of the distance
    kl_weight: float = 1e-6  # of the sum over a clip's latents, where distances are summed over its bands
    dtype: str = "float32"  # of products: float32 or bfloat16

    def __post_init__(self) -> None:
        check_least(self, 1, "batch", "excerpt", "discriminator_channels")
        check_least(self, 0, "adversarial_from", "adversarial_weight", "kl_weight")
        check_positive(self, "learning_rate", "discriminator_rate")
        check_betas(self.betas)
        check_dtype(self.dtype)


class PatchDiscriminator(nn.Module):
    """Judges patches of standardised spectrograms ``(B, bands, N)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [1, channels, 2 * channels, 4 * channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, 5, 2, padding=2)) for a, b in pairwise(widths)
        )
        self.layers.append(weight_norm(nn.Conv2d(widths[-1], 8 * channels, 3, padding=1)))
        self.head = weight_norm(nn.Conv2d(8 * channels, 1, 3, padding=1))

    def forward(self, mel: Tensor) -> Verdicts:
        x = mel[:, None]
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return [(self.head(x), [])]


class MelVAELearner(Learner):
    """The VAE and its discriminator."""

    averaged = ("vae",)

    def __init__(
        self, vae: MelVAE, mel: MelConfig, options: MelVAEOptions, sounds: Sounds, seed: int = 0
    ) -> None:
        self.vae, self.mel, self.options, self.sounds = vae, mel, options, sounds
        self.device = next(vae.parameters()).device
        self.discriminator = seeded(lambda: PatchDiscriminator(options.discriminator_channels), seed).to(
            self.device
        )
        self.networks: dict[str, nn.Module] = {"vae": vae, "discriminator": self.discriminator}
        self._sizes = [_size(weight) for weight in _weights(vae)]
        groups = [
            {"params": [parameter], "lr": options.learning_rate / _root_of_fan_in(parameter)}
            for parameter in vae.parameters()
        ]
        self.optimizers = {
            "vae": torch.optim.AdamW(groups, options.learning_rate, options.betas, weight_decay=0.0),
            "discriminator": torch.optim.AdamW(
                self.discriminator.parameters(), options.discriminator_rate, options.betas, weight_decay=0.0
            ),
        }

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        options, vae = self.options, self.vae
        samples = _samples(options.excerpt, self.mel)
        mels = self._mels(self.sounds.batch(options.batch, samples, generator))
        target = _standardised(vae, mels)
        noise = torch.randn(len(target), vae.config.latent_dim, options.excerpt, generator=generator)
        with autocast(self.device, options.dtype):
            mean, log_variance = vae.encode(mels)
            latents, divergence = vae.sample(mean.float(), log_variance.float(), noise.to(self.device))
            found = vae.decoder(latents).float()
        distance = (found - target).abs().mean()
        # Both per value of the spectrogram, which has two frames per latent frame.
        divergence = divergence / (2 * vae.config.mel_bands)
        loss = distance + options.kl_weight * divergence
        row = {"distance": distance.item(), "kl": divergence.item()}
        if step >= options.adversarial_from:
            judging, fooling = self._judge(target, found, update)
            share = options.adversarial_weight * _balance(distance, fooling, vae.decoder.conv_out.weight)
            loss = loss + share * fooling
            row |= {"discriminator": judging, "adversarial": fooling.item()}
        row["gradient"] = self._update(loss, update)
        return row

    def _judge(self, target: Tensor, found: Tensor, update: Update) -> tuple[float, Tensor]:
        """Train the discriminator; returns its loss, and how well ``found`` passes for real."""
        with autocast(self.device, self.options.dtype):
            real, fake = self.discriminator(target), self.discriminator(found.detach())
        judging = discriminator_loss(real, fake)
        update(judging, self.optimizers["discriminator"])
        with autocast(self.device, self.options.dtype):
            self.discriminator.requires_grad_(False)
            fake = self.discriminator(found)
            self.discriminator.requires_grad_(True)
        return judging.item(), adversarial_loss(fake)

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        vae = cast(MelVAE, networks["vae"])
        mels = self._mels(self.sounds.held_out(_samples(self.options.excerpt, self.mel)))
        losses = []
        for part in mels.split(self.options.batch):
            mean, _ = vae.encode(part)
            losses.append((vae.decoder(mean) - _standardised(vae, part)).abs().mean())
        return {"distance": torch.stack(losses).mean().item()}

    @torch.no_grad()
    def constrain(self, network: nn.Module) -> None:
        """Give the weights of convolutions the size per output channel that they had at the start."""
        for weight, size in zip(_weights(network), self._sizes, strict=True):
            weight.mul_(size / _size(weight))

    def _update(self, loss: Tensor, update: Update) -> float:
        optimizer = self.optimizers["vae"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for weight, size in zip(_weights(self.vae), self._sizes, strict=True):
            assert weight.grad is not None
            along = (weight.grad * weight).sum(dim=(1, 2), keepdim=True) / size.square()
            weight.grad -= along * weight.detach()
        norm = update.step(optimizer)
        self.constrain(self.vae)
        return norm

    def _mels(self, sounds: Tensor) -> Tensor:
        """Spectrograms ``(B, bands, 2T)`` of stereo ``sounds (B, 2, A)``."""
        return log_mel(sounds.to(self.device).mean(dim=1, keepdim=True), self.mel)


def initialise_mel_vae(vae: MelVAE, seed: int) -> None:
    """Values to start from, drawn from ``seed``: weights of the size that they keep, gains of one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()  # the gains, to which one is added
        for weight in _weights(vae):
            weight.normal_(generator=generator)
            weight.div_(_size(weight))


@torch.no_grad()
def measure_mels(vae: MelVAE, mel: MelConfig, sounds: Sounds, excerpt: int) -> None:
    """Take the mean and deviation of each band, which the VAE standardises with, from sounds."""
    samples = _samples(excerpt, mel)
    excerpts = sounds.batch(_STATISTICS_EXCERPTS, samples, torch.Generator().manual_seed(0))
    mels = torch.cat([log_mel(part.mean(dim=1, keepdim=True), mel) for part in excerpts.split(8)])
    vae.data_mean.copy_(mels.mean(dim=(0, 2), keepdim=True))
    vae.data_std.copy_(mels.std(dim=(0, 2), keepdim=True).clamp_min(_LEAST_DEVIATION))


def _samples(excerpt: int, mel: MelConfig) -> int:
    """Audio samples of latent frames."""
    return excerpt * 2 * mel.hop


def _weights(network: nn.Module) -> Iterator[Tensor]:
    """Of the convolutions, ``(C_out, C_in, K)`` each."""
    return (parameter for parameter in network.parameters() if parameter.dim() == 3)


def _root_of_fan_in(parameter: Tensor) -> float:
    return math.sqrt(parameter[0].numel()) if parameter.dim() == 3 else 1.0


def _size(weight: Tensor) -> Tensor:
    """Norm of each output channel, ``(C_out, 1, 1)``."""
    return torch.linalg.vector_norm(weight.detach(), dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _standardised(vae: MelVAE, mels: Tensor) -> Tensor:
    return (mels - vae.data_mean) / vae.data_std


def _balance(distance: Tensor, fooling: Tensor, weight: Tensor) -> Tensor:
    """How many times stronger the gradient of ``distance`` is than that of ``fooling`` at a weight."""
    wanted, other = (
        torch.autograd.grad(each, weight, retain_graph=True)[0].norm() for each in (distance, fooling)
    )
    return (wanted / (other + 1e-4)).clamp(max=_LARGEST_SHARE).detach()
