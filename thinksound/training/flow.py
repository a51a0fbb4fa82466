"""Training of the transformer: rectified flow on prepared clips.

Sources: rectified flow, https://arxiv.org/abs/2209.03003; logit-normal times,
https://arxiv.org/abs/2403.03206, section 3.1; conditions dropped one by one as in ThinkSound,
https://arxiv.org/abs/2506.21448, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..models.mmdit import MMDiT
from ..models.oobleck import AudioVAE
from .loop import Learner, Update, autocast
from .shards import Batch, PreparedClips

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class FlowOptions:
    """The recipe; rates, betas and dropout are those of the published training."""

    batch: int = 8  # clips per step and process
    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-2
    drop_one: float = 0.2  # chance of each condition to be absent, on its own
    drop_all: float = 0.1  # chance of all to be absent at once: the unconditional half of guidance
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("drop_one", "drop_all"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: give 0 to less than 1")
        if self.batch < 1:
            raise InputError(f"batch {self.batch}: give 1 or more")


def epoch_order(count: int, seed: int, start: int, length: int) -> list[int]:
    """Entries ``start`` to ``start + length`` of an endless list of shuffled rounds over ``count`` clips."""
    order: list[int] = []
    while len(order) < length:
        place = start + len(order)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place // count)
        shuffled = torch.randperm(count, generator=generator).tolist()
        order += shuffled[place % count :]
    return order[:length]


def noisy(latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The state at flow times ``(B,)`` (1 noise, 0 sound) and the velocity that leads through it."""
    t = times[:, None, None]
    return t * noise + (1 - t) * latents, noise - latents


class FlowLearner(Learner):
    """The transformer."""

    averaged = ("dit",)

    def __init__(
        self,
        network: MMDiT,
        options: FlowOptions,
        clips: PreparedClips,
        validation: PreparedClips | None = None,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.network, self.options = network, options
        self.clips, self.validation = clips, validation
        self.seed, self.rank, self.processes = seed, rank, processes
        self.device = network.sync_pos_emb.device
        self.networks: dict[str, nn.Module] = {"dit": network}
        # Biases, norms and learned empties are not pulled to zero.
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizers = {"dit": torch.optim.AdamW(groups, options.learning_rate, options.betas)}

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        size = self.options.batch
        first = (step * self.processes + self.rank) * size
        batch = self._to_device(self.clips.batch(epoch_order(len(self.clips), self.seed, first, size)))
        latents = self._latents(batch, generator)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        times = torch.sigmoid(torch.randn(size, generator=generator)).to(self.device)
        features = self._features(batch, self._absent(batch, generator))
        loss = self._loss(self.network, features, latents, noise, times)
        return {"loss": loss.item(), "gradient": update(loss, self.optimizers["dit"])}

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """The loss with all conditions at five fixed times, on fixed noise."""
        if self.validation is None:
            return {}
        network = networks["dit"]
        assert isinstance(network, MMDiT)
        generator = torch.Generator().manual_seed(0)
        total, count = 0.0, 0
        for start in range(0, len(self.validation), self.options.batch):
            chosen = range(start, min(start + self.options.batch, len(self.validation)))
            batch = self._to_device(self.validation.batch(list(chosen)))
            latents = self._latents(batch, generator)
            noise = torch.randn(latents.shape, generator=generator).to(self.device)
            given = self._features(batch, (~batch.has_video[:, None]).repeat(1, 4) & _VIDEO.to(self.device))
            for time in VALIDATION_TIMES:
                times = torch.full((len(latents),), time, device=self.device)
                total += self._loss(network, given, latents, noise, times).item() * len(latents)
            count += len(latents)
        return {"loss": total / count / len(VALIDATION_TIMES)}

    def _loss(
        self,
        network: MMDiT,
        features: tuple[Tensor, Tensor, Tensor, Tensor],
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
    ) -> Tensor:
        state, velocity = noisy(latents, noise, times)
        with autocast(self.device, self.options.dtype):
            found = network(state, times, network.project(*features, latents.shape[-1]))
        return F.mse_loss(found.float(), velocity)

    def _to_device(self, batch: Batch) -> Batch:
        return Batch(**{field.name: getattr(batch, field.name).to(self.device) for field in fields(Batch)})

    def _latents(self, batch: Batch, generator: torch.Generator) -> Tensor:
        noise = torch.randn(batch.latent_mean.shape, generator=generator).to(self.device)
        latents, _ = AudioVAE.sample(batch.latent_mean, batch.latent_scale, noise)
        return latents

    def _absent(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Which conditions each clip goes without, ``(B, 4)`` bool in `project`'s order."""
        size = len(batch.has_video)
        one = torch.rand(size, 4, generator=generator) < self.options.drop_one
        everything = torch.rand(size, 1, generator=generator) < self.options.drop_all
        return (one | everything).to(self.device) | (~batch.has_video[:, None] & _VIDEO.to(self.device))

    def _features(self, batch: Batch, absent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four conditions, the learned empty ones in place of those that are absent."""
        given = (batch.clip_features, batch.sync_features, batch.text_features, batch.t5_features)
        empty = self.network.empty_features(given[0].shape[1], given[1].shape[1])
        clip, sync, text, t5 = (
            torch.where(absent[:, place, None, None], nothing, something)
            for place, (something, nothing) in enumerate(zip(given, empty, strict=True))
        )
        return clip, sync, text, t5


_VIDEO = torch.tensor([True, True, False, False])  # the conditions that come from pictures


def initialise_mmdit(network: MMDiT, seed: int) -> None:
    """Values to start from, drawn from ``seed``; modulation and output start at zero (adaLN-Zero)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.conv"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            elif "empty" in name or name == "sync_pos_emb":
                parameter.normal_(0, 0.02, generator=generator)
            else:
                fan_in, fan_out = parameter[0].numel(), parameter.numel() // parameter.shape[1]
                parameter.normal_(0, (2 / (fan_in + fan_out)) ** 0.5, generator=generator)
