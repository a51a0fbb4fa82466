"""Training of the transformer: rectified flow on prepared clips.

Sources: rectified flow, https://arxiv.org/abs/2209.03003; logit-normal times,
https://arxiv.org/abs/2403.03206, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data.shards import Batch, PreparedClips
from ..families.protocol import TRANSFORMER, Condition, Family
from ..models.flow import FlowTransformer
from .dropping import dropping, settled
from .loop import Learner, Update, autocast
from .options import FlowOptions
from .processes import mean_over_processes

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
_STATISTICS_CLIPS = 4096  # at most, whose latents are looked at before training from scratch
_LEAST_DEVIATION = 1e-2  # of a latent channel; one that does not vary is not to be magnified


def epoch_order(count: int, seed: int, start: int, length: int) -> list[int]:
    """Entries ``start`` to ``start + length`` of an endless list of shuffled epochs over ``count`` clips."""
    order: list[int] = []
    while len(order) < length:
        place = start + len(order)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place // count)
        shuffled = torch.randperm(count, generator=generator).tolist()
        order += shuffled[place % count :]
    return order[:length]


def noisy(latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The state at flow times ``(B,)`` (1 noise, 0 sound) and the velocity there, each ``(B, C, T)``."""
    t = times[:, None, None]
    return t * noise + (1 - t) * latents, noise - latents


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Flow times ``(count,)``, logit-normal: most of them in the middle, where the velocity is hardest."""
    return torch.sigmoid(torch.randn(count, generator=generator))


def draw_dropped(count: int, groups: int, options: FlowOptions, generator: torch.Generator) -> Tensor:
    """Which groups of conditions are taken from each clip, ``(count, groups)`` bool."""
    assert options.drop_one is not None and options.drop_all is not None, "not settled"
    one = torch.rand(count, groups, generator=generator) < options.drop_one
    everything = torch.rand(count, 1, generator=generator) < options.drop_all
    return one | everything


class FlowLearner(Learner):
    """Trains the transformer's parameters that require a gradient."""

    averaged = (TRANSFORMER,)
    shares_draws = True

    def __init__(
        self,
        network: FlowTransformer,
        family: Family,
        options: FlowOptions,
        clips: PreparedClips,
        validation: PreparedClips | None = None,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.network, self.family, self.options = network, family, settled(options, family)
        self.clips, self.validation = clips, validation
        self.seed, self.rank, self.processes = seed, rank, processes
        self.device = network.sync_pos_emb.device
        self.groups = dropping(family).groups(family)  # of the conditions
        self.networks: dict[str, nn.Module] = {TRANSFORMER: network}
        # No weight decay for parameters of one dimension: biases and norms.
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizers = {
            TRANSFORMER: torch.optim.AdamW(
                groups,
                options.learning_rate,
                options.betas,
                # One pass over the parameters, without a copy of them all on the way.
                fused=True if self.device.type == "cuda" else None,
            )
        }

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        size, rank = self.options.batch, self.rank
        everyone, own = size * self.processes, slice(rank * size, (rank + 1) * size)
        latent_shape = (everyone, *self.clips.layout.shapes["latent_mean"])
        # One draw for the clips of all processes, so that it does not matter which process has which clip.
        latent_noise = torch.randn(latent_shape, generator=generator)[own]
        noise = torch.randn(latent_shape, generator=generator)[own]
        times = draw_times(everyone, generator)[own]
        dropped = draw_dropped(everyone, max(self.groups) + 1, self.options, generator)[own][:, self.groups]
        chosen = epoch_order(len(self.clips), self.seed, step * everyone + rank * size, size)

        optimizer = self.optimizers[TRANSFORMER]
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in torch.arange(size).chunk(self.options.parts):
            batch = to_device(self.clips.batch([chosen[place] for place in part]), self.device)
            latents = self._latents(self.network, batch, latent_noise[part])
            features = given_features(
                self.network, self.family.conditions, batch, dropped[part].to(self.device)
            )
            loss = self._loss(
                self.network, features, latents, noise[part].to(self.device), times[part].to(self.device)
            )
            loss = loss * (len(part) / size)
            loss.backward()
            total += loss.item()
        return {"loss": total, "gradient": update.step(optimizer)}

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """The loss with all conditions at five fixed times, on fixed noise."""
        if self.validation is None:
            return {}
        network = cast(FlowTransformer, networks[TRANSFORMER])
        generator = torch.Generator().manual_seed(0)
        total, count, size = 0.0, 0, self.options.batch
        for start in range(0, len(self.validation), size * self.processes):
            everyone = range(start, min(start + size * self.processes, len(self.validation)))
            latent_shape = (len(everyone), *self.validation.layout.shapes["latent_mean"])
            own = slice(self.rank * size, (self.rank + 1) * size)
            latent_noise = torch.randn(latent_shape, generator=generator)[own]
            noise = torch.randn(latent_shape, generator=generator)[own].to(self.device)
            if not len(noise):
                continue  # other processes have the last clips
            batch = to_device(self.validation.batch(everyone[own]), self.device)
            latents = self._latents(network, batch, latent_noise)
            features = given_features(network, self.family.conditions, batch)
            for time in VALIDATION_TIMES:
                times = torch.full((len(latents),), time, device=self.device)
                total += self._loss(network, features, latents, noise, times).item() * len(latents)
            count += len(latents)
        means = mean_over_processes({"total": total, "count": count})
        return {"loss": means["total"] / means["count"] / len(VALIDATION_TIMES)}

    def _loss(
        self,
        network: FlowTransformer,
        features: Sequence[Tensor],
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
    ) -> Tensor:
        state, velocity = noisy(latents, noise, times)
        with autocast(self.device, self.options.dtype):
            found = network.velocity(state, times, network.project(*features, latents.shape[-1]))
        return F.mse_loss(found.float(), velocity)

    def _latents(self, network: FlowTransformer, batch: Batch, noise: Tensor) -> Tensor:
        drawn = self.family.draw_latents(batch.latent_mean, batch.latent_scale, noise.to(self.device))
        return network.normalised(drawn)


def given_features(
    network: FlowTransformer,
    conditions: Sequence[Condition],
    batch: Batch,
    dropped: Tensor | None = None,
) -> list[Tensor]:
    """The conditions of clips in the transformer's order, its null features for those that are absent.

    Args:
        network: whose null features are used.
        conditions: of its family.
        batch: on the network's device.
        dropped: ``(B, conditions)`` bool, conditions that are taken away besides those that come from the
            frames of clips without video.
    """
    given = [batch.features[condition.name] for condition in conditions]
    from_video = torch.tensor([condition.source != "text" for condition in conditions])
    absent = ~batch.has_video[:, None] & from_video.to(batch.has_video.device)
    if dropped is not None:
        absent = absent | dropped
    empty = network.empty_features(given[0].shape[1], given[1].shape[1])
    return [
        torch.where(absent[:, place, None, None], nothing, something)
        for place, (something, nothing) in enumerate(zip(given, empty, strict=True))
    ]


def to_device(batch: Batch, device: torch.device) -> Batch:
    return batch.each(lambda part: part.to(device))


def latent_statistics(clips: PreparedClips) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(C,)`` of each latent channel over clips, as the VAE gives them."""
    count = min(len(clips), _STATISTICS_CLIPS)
    total = squares = torch.zeros(clips.layout.shapes["latent_mean"][0], dtype=torch.float64)
    for index in range(count):  # evenly spread over all
        latents = clips.batch([index * len(clips) // count]).latent_mean[0].double()  # (C, T)
        total = total + latents.mean(dim=1)
        squares = squares + latents.square().mean(dim=1)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(_LEAST_DEVIATION)
    return mean.float(), deviation.float()


def recompute_blocks(network: FlowTransformer) -> None:
    """Keep only the inputs of each block and compute the rest again in the backward pass.

    Takes about a third more time and a fraction of the memory; the result is the same. Call it before the
    network is copied for averages.
    """
    for block in (*network.joint_blocks, *network.fused_blocks):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def initialise_flow(network: FlowTransformer, seed: int) -> None:
    """Set initial values drawn from ``seed``; modulation and output start at zero (adaLN-Zero)."""
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
