"""Pretraining of small encoders on clips with their sound; afterwards they are frozen.

* The motion encoder learns to predict the sound from frames, every 20 ms: levels of a few bands, the
  panning, and the rise of the level ("flux"). It is not told what an event is.
* MetaCLIP learns to match frames with captions (CLIP, https://arxiv.org/abs/2103.00020, section 2.3).
* T5 learns to fill in missing words (BERT's task, https://arxiv.org/abs/1810.04805, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...encoders.metaclip import MetaCLIP
from ...encoders.pixels import normalize_clip
from ...encoders.pretrained import tokenize
from ...encoders.t5 import T5Text
from ...models.clip import CLIP
from ...models.motion import MotionEncoder
from ...models.synchformer import SYNC_FPS
from ..loop import Learner, Update, autocast, seeded

TARGETS_PER_SECOND = 2 * SYNC_FPS
TARGETS_PER_FEATURE = TARGETS_PER_SECOND // SYNC_FPS
BANDS = 8
TARGET_CHANNELS = BANDS + 2  # band levels, panning, flux
PATCH_RATE = 0.07  # learning rate of patch filters, relative to the others'
FIRST_LOGIT_SCALE, MAX_LOGIT_SCALE = 2.66, 4.6  # factors of 14 and 100, CLIP's start and limit
FLUX_WEIGHT = 4.0  # flux is rare: most of the time nothing happens


@dataclass(frozen=True)
class Films:
    """N clips of equal length for pretraining, in memory."""

    small: Tensor  # uint8 (N, S', H, W, 3): 25 frames per second, reduced as the motion encoder does
    pictures: Tensor  # uint8 (N, K, 224, 224, 3): a few frames for MetaCLIP
    targets: Tensor  # (N, 2 S', 10): `sound_targets`
    captions: Sequence[str]


def sound_targets(waveform: Tensor, sample_rate: int) -> Tensor:
    """The targets of the motion encoder: ``(50 per second, 10)`` of ``waveform (2, A)``, each about 0 to 1.

    Levels are on a logarithmic scale of 80 dB. The panning is the share of the right channel in the power.
    The flux is the mean rise of the bands' levels over 20 ms, smoothed over three values, times 4.
    """
    hop = sample_rate // TARGETS_PER_SECOND
    size = 2 * hop
    count = waveform.shape[-1] // hop
    window = torch.hann_window(size)
    # Frame j is centred on the middle of its 20 ms.
    padded = F.pad(waveform, (hop // 2, size))
    frames = padded.unfold(-1, size, hop)[:, :count]  # (2, N, size)
    power = torch.fft.rfft(frames * window).abs().square() / window.sum().square()  # (2, N, F)
    edges = torch.logspace(0.5, torch.log10(torch.tensor(size / 2.0)).item(), BANDS + 1).long().tolist()
    parts = [power[..., a : max(b, a + 1)].sum(dim=-1) for a, b in pairwise(edges)]
    bands = torch.stack(parts, dim=-1)  # (2, N, BANDS)
    levels = 1 + torch.log10(bands.mean(dim=0) + 1e-8) / 8
    left, right = power.sum(dim=-1) + 1e-8
    rise = F.pad(levels, (0, 0, 1, 0), value=0.0).diff(dim=0).clamp_min(0).mean(dim=-1)
    kernel = torch.tensor([0.25, 0.5, 0.25]).view(1, 1, 3)
    flux = F.conv1d(rise.view(1, 1, -1), kernel, padding=1).flatten()
    return torch.cat([levels, (right / (left + right))[:, None], 4 * flux[:, None]], dim=-1)


class SyncHead(nn.Module):
    """From features, one per frame, to `sound_targets`: ``(B, P, D)`` to ``(B, 2P, 10)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, TARGETS_PER_FEATURE * TARGET_CHANNELS)

    def forward(self, features: Tensor) -> Tensor:
        targets: Tensor = self.linear(self.norm(features)).unflatten(
            -1, (TARGETS_PER_FEATURE, TARGET_CHANNELS)
        )
        return targets.flatten(1, 2)


def _start_at(head: SyncHead, targets: Tensor) -> None:
    """Initialise the head so that it predicts about the mean of ``targets (B, N, 10)``."""
    with torch.no_grad():
        head.linear.weight.mul_(0.1)
        head.linear.bias.copy_(targets.mean(dim=(0, 1)).repeat(TARGETS_PER_FEATURE))


def sync_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of ``(B, N, 10)``; the flux is weighted by `FLUX_WEIGHT`."""
    error = (found.float() - wanted).square().mean(dim=(0, 1))
    return error[:-1].mean() + FLUX_WEIGHT * error[-1]


@dataclass(frozen=True)
class PretrainingOptions:
    batch: int = 16  # clips
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    excerpt: int = 50  # frames of a clip for the motion encoder: 2 s
    dtype: str = "float32"  # of matrix products: float32 or bfloat16


class SyncLearner(Learner):
    """Trains the motion encoder to predict `sound_targets` from frames."""

    averaged = ("synchformer",)

    def __init__(
        self,
        synchformer: MotionEncoder,
        options: PretrainingOptions,
        films: Films,
        validation: Films,
        seed: int = 0,
    ) -> None:
        self.options, self.films, self.validation = options, films, validation
        tower = synchformer.vfeat_extractor
        self.device = next(tower.parameters()).device
        dim = tower.config.embed_dim
        self.head = seeded(lambda: SyncHead(dim), seed).to(self.device)
        _start_at(self.head, films.targets[:256].float())
        self.networks: dict[str, nn.Module] = {"synchformer": synchformer, "head": self.head}
        self.optimizers = {"sync": _optimizer([synchformer, self.head], options)}

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        chosen = torch.randint(len(self.films.small), (self.options.batch,), generator=generator)
        length = min(self.options.excerpt, self.films.small.shape[1])
        start = int(torch.randint(self.films.small.shape[1] - length + 1, (), generator=generator))
        pixels = self.films.small[chosen, start : start + length]
        begin, end = start * TARGETS_PER_FEATURE, (start + length) * TARGETS_PER_FEATURE
        targets = self.films.targets[chosen, begin:end].float()
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None, None], pixels.flip(3), pixels)
        side = targets[..., BANDS]
        targets[..., BANDS] = torch.where(mirrored[:, None], 1 - side, side)
        found, wanted = self._compare(self.networks["synchformer"], pixels, targets)
        loss = sync_loss(found, wanted)
        return {"sync": loss.item(), "gradient": update(loss, self.optimizers["sync"])}

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        films = self.validation
        pairs = [
            self._compare(networks["synchformer"], pixels, targets.float())
            for pixels, targets in zip(films.small.split(8), films.targets.split(8), strict=True)
        ]
        found, wanted = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        flux = torch.stack([found[..., -1].flatten(), wanted[..., -1].flatten()])
        return {
            "sync": sync_loss(found, wanted).item(),
            "flux_correlation": torch.corrcoef(flux)[0, 1].item(),
        }

    def _compare(self, synchformer: nn.Module, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true targets ``(B, 2P, 10)`` of clips."""
        tower = cast(MotionEncoder, synchformer).vfeat_extractor
        scaled = (pixels.to(self.device).float() / 127.5 - 1).movedim(-1, -3)  # (B, P, 3, H, W)
        with autocast(self.device, self.options.dtype):
            found = self.head(tower.follow(scaled))
        return found.float(), targets.to(self.device)


class PictureLearner(Learner):
    """Trains MetaCLIP to match frames with captions."""

    averaged = ("metaclip",)

    def __init__(
        self, metaclip: MetaCLIP, options: PretrainingOptions, films: Films, validation: Films
    ) -> None:
        self.options, self.films, self.validation = options, films, validation
        self.metaclip = metaclip
        self.device = metaclip.model.device
        with torch.no_grad():
            metaclip.model.logit_scale.fill_(FIRST_LOGIT_SCALE)
        self.networks: dict[str, nn.Module] = {"metaclip": metaclip.model}
        self.optimizers = {"metaclip": _optimizer([metaclip.model], options)}

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        count = self.options.batch
        chosen = torch.randint(len(self.films.pictures), (count,), generator=generator)
        which = torch.randint(self.films.pictures.shape[1], (count,), generator=generator)
        captions = [self.films.captions[index] for index in chosen.tolist()]
        loss = self._contrast(self.metaclip.model, self.films.pictures[chosen, which], captions)
        return {"contrast": loss.item(), "gradient": update(loss, self.optimizers["metaclip"])}

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        model = cast(CLIP, networks["metaclip"])
        return {
            "contrast": self._contrast(model, self.validation.pictures[:, 0], self.validation.captions).item()
        }

    def _contrast(self, model: CLIP, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Symmetric cross-entropy between frames ``pictures (B, 224, 224, 3)`` and their captions."""
        tokens = [tokenize(self.metaclip.tokenizer, caption, self.device) for caption in captions]
        ids, mask = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        seen = model.image_features(normalize_clip(pictures.to(self.device)))
        read = model.text_features(ids, mask)
        scores = F.normalize(seen.float(), dim=-1) @ F.normalize(read.float(), dim=-1).T
        scores = scores * model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        owner = torch.arange(len(scores), device=self.device)
        return (F.cross_entropy(scores, owner) + F.cross_entropy(scores.T, owner)) / 2


class TextSource(Protocol):
    """Where pretraining texts come from."""

    def batch(self, step: int, count: int) -> Sequence[str]:
        """The texts of one step."""


class TextLearner(Learner):
    """Trains T5's encoder to fill in missing words."""

    averaged = ("t5",)

    def __init__(
        self, t5: T5Text, texts: TextSource, batch: int = 32, learning_rate: float = 1e-3, seed: int = 0
    ) -> None:
        self.t5, self.texts, self.batch = t5, texts, batch
        self.device = t5.model.device
        width, words = t5.model.config.width, len(t5.tokenizer)
        self.head = seeded(lambda: nn.Linear(width, words), seed).to(self.device)
        self.networks: dict[str, nn.Module] = {"t5": t5.model, "head": self.head}
        parameters = [*t5.model.parameters(), *self.head.parameters()]
        self.optimizers = {"t5": torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01)}

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        tokenizer: PreTrainedTokenizerBase = self.t5.tokenizer
        tokens = [tokenize(tokenizer, text, self.device) for text in self.texts.batch(step, self.batch)]
        ids, mask = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        hidden = (torch.rand(ids.shape, generator=generator).to(self.device) < 0.2) & (mask == 1)
        blank = tokenizer.get_vocab()["<extra_id_0>"]
        states = self.t5.model(ids.masked_fill(hidden, blank), mask)
        scores = self.head(states[hidden].float())
        loss = F.cross_entropy(scores, ids[hidden])
        right = (scores.argmax(dim=-1) == ids[hidden]).float().mean()
        update(loss, self.optimizers["t5"])
        return {"words": loss.item(), "right": right.item()}


def initialise_motion(synchformer: MotionEncoder, seed: int) -> None:
    """Set initial values drawn from ``seed`` that keep the signal's power through rectifiers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in synchformer.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            else:
                fan_in = parameter[0].numel()
                # The convolutions along time are residual branches.
                gain = 0.3 if ".times." in name else 2**0.5
                parameter.normal_(0, gain * fan_in**-0.5, generator=generator)


@torch.no_grad()
def calm(network: nn.Module) -> None:
    """Scale down the residual branches, so that they do not drown the patches' embeddings at first."""
    for name, parameter in network.named_parameters():
        if name.endswith(_BRANCH_ENDS):
            parameter.mul_(0.1)


_BRANCH_ENDS = ("out_proj.weight", "fc2.weight")


def _optimizer(networks: Sequence[nn.Module], options: PretrainingOptions) -> torch.optim.Optimizer:
    """AdamW with a lower learning rate for the patch filters of a transformer.

    A step of Adam moves each weight by about the learning rate. A patch filter has thousands of weights, and
    neighbouring pixels are alike, so the steps add up: at the common rate its output would change too fast.
    """
    named = [item for network in networks for item in network.named_parameters()]
    slow = [p for name, p in named if "patch_embed" in name]
    fast = [p for name, p in named if "patch_embed" not in name]
    groups: list[dict[str, Any]] = [
        {"params": fast},
        {"params": slow, "lr": options.learning_rate * PATCH_RATE},
    ]
    return torch.optim.AdamW(groups, options.learning_rate, options.betas, weight_decay=options.weight_decay)
