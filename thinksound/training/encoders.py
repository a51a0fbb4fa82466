"""Pretraining of small encoders on clips with their sound; afterwards they are frozen.

* Synchformer learns to tell from pictures what the sound does in every 20 ms: levels of a few bands,
  the side it comes from, and the rise of the level ("flux"). It is not told what an event is.
* MetaCLIP learns to match pictures with captions (CLIP, https://arxiv.org/abs/2103.00020, section 2.3).
* T5 learns to fill in missing words (BERT's task, https://arxiv.org/abs/1810.04805, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..encoders.metaclip import MetaCLIP
from ..encoders.pretrained import tokenize
from ..encoders.t5 import T5Text
from ..media.frames import normalize_clip, normalize_sync
from ..models.synchformer import Synchformer
from ..rates import SYNC_FEATURES_PER_SEGMENT, SYNC_FPS, SYNC_SEGMENT
from .loop import Learner, Update, autocast, seeded

TARGETS_PER_SECOND = 2 * SYNC_FPS
TARGETS_PER_FEATURE = TARGETS_PER_SECOND * SYNC_SEGMENT // SYNC_FPS // SYNC_FEATURES_PER_SEGMENT
BANDS = 8
TARGET_CHANNELS = BANDS + 2  # band levels, side, flux
MAX_LOGIT_SCALE = 4.6  # a factor of 100, CLIP's limit
FLUX_WEIGHT = 4.0  # flux is rare: most of the time nothing happens


@dataclass(frozen=True)
class Scenes:
    """A batch of clips as pretraining sees them."""

    clip_frames: Sequence[Tensor]  # each uint8 (V, 224, 224, 3), 8 per second
    sync_frames: Sequence[Tensor]  # each uint8 (S', 224, 224, 3), 25 per second
    waveforms: Sequence[Tensor]  # each float32 (2, A)
    captions: Sequence[str]


class SceneSource(Protocol):
    """Where pretraining clips come from."""

    sample_rate: int

    def batch(self, step: int, count: int) -> Scenes:
        """The clips of one step."""

    def held_out(self) -> Scenes:
        """Clips that `batch` never gives."""


def sound_targets(waveform: Tensor, sample_rate: int) -> Tensor:
    """What the pictures shall tell: ``(50 per second, 10)`` of ``waveform (2, A)``, each about 0 to 1.

    Levels lie on a logarithmic scale of 80 dB; the side is the share of the right channel; the flux is
    the mean rise of the bands' levels against 20 ms before, smoothed over three values.
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
    """From Synchformer features to `sound_targets`: ``(B, 8, D)`` to ``(B, 32, 10)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, TARGETS_PER_FEATURE * TARGET_CHANNELS)

    def forward(self, features: Tensor) -> Tensor:
        targets: Tensor = self.linear(self.norm(features)).unflatten(
            -1, (TARGETS_PER_FEATURE, TARGET_CHANNELS)
        )
        return targets.flatten(1, 2)


def sync_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of ``(B, N, 10)``, the flux counting more."""
    error = (found.float() - wanted).square().mean(dim=(0, 1))
    return error[:-1].mean() + FLUX_WEIGHT * error[-1]


@dataclass(frozen=True)
class PretrainingOptions:
    clips: int = 8  # a step
    segments: int = 6  # of each clip, drawn at random
    pictures: int = 3  # of each clip for MetaCLIP
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    dtype: torch.dtype = torch.float32


class PictureLearner(Learner):
    """Synchformer and MetaCLIP, on the same clips."""

    averaged = ("synchformer", "metaclip")

    def __init__(
        self,
        synchformer: Synchformer,
        metaclip: MetaCLIP,
        options: PretrainingOptions,
        scenes: SceneSource,
        seed: int = 0,
    ) -> None:
        self.options, self.scenes = options, scenes
        self.synchformer, self.metaclip = synchformer, metaclip
        self.device = next(synchformer.parameters()).device
        dim = synchformer.vfeat_extractor.config.embed_dim
        self.head = seeded(lambda: SyncHead(dim), seed).to(self.device)
        self.networks: dict[str, nn.Module] = {
            "synchformer": synchformer,
            "metaclip": metaclip.model,
            "head": self.head,
        }

        def optimizer(*networks: nn.Module) -> torch.optim.Optimizer:
            parameters = [p for network in networks for p in network.parameters()]
            return torch.optim.AdamW(
                parameters, options.learning_rate, options.betas, weight_decay=options.weight_decay
            )

        self.optimizers = {"sync": optimizer(synchformer, self.head), "metaclip": optimizer(metaclip.model)}

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        scenes = self.scenes.batch(step, self.options.clips)
        segments, targets = self._segments(scenes, generator)
        with autocast(self.device, self.options.dtype):
            found = self.head(self.synchformer(segments))
        sync = sync_loss(found, targets)
        norm = update(sync, self.optimizers["sync"])
        with autocast(self.device, self.options.dtype):
            contrast = self._contrast(self.metaclip, scenes, generator)
        update(contrast, self.optimizers["metaclip"])
        return {"sync": sync.item(), "contrast": contrast.item(), "gradient": norm}

    @torch.no_grad()
    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        scenes = self.scenes.held_out()
        segments, targets = self._segments(scenes, generator)
        parts = [self.head(networks["synchformer"](part)) for part in segments.split(16)]
        found = torch.cat(parts).float()
        flux = torch.stack([found[..., -1].flatten(), targets[..., -1].flatten()])
        contrast = self._contrast(
            MetaCLIP(networks["metaclip"], self.metaclip.tokenizer),  # type: ignore[arg-type]
            scenes,
            generator,
        )
        return {
            "sync": sync_loss(found, targets).item(),
            "flux_correlation": torch.corrcoef(flux)[0, 1].item(),
            "contrast": contrast.item(),
        }

    def _segments(self, scenes: Scenes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random segments ``(N, 16, 3, 224, 224)`` and their targets ``(N, 32, 10)``."""
        pictures, targets = [], []
        length = TARGETS_PER_SECOND * SYNC_SEGMENT // SYNC_FPS
        for frames, waveform in zip(scenes.sync_frames, scenes.waveforms, strict=True):
            wanted = sound_targets(waveform, self.scenes.sample_rate)
            last = min(len(frames) - SYNC_SEGMENT, (len(wanted) - length) * SYNC_FPS // TARGETS_PER_SECOND)
            for first in torch.randint(last + 1, (self.options.segments,), generator=generator).tolist():
                pictures.append(frames[first : first + SYNC_SEGMENT])
                begin = first * TARGETS_PER_SECOND // SYNC_FPS
                targets.append(wanted[begin : begin + length])
        pixels = normalize_sync(torch.cat(pictures).to(self.device)).unflatten(0, (-1, SYNC_SEGMENT))
        return pixels, torch.stack(targets).to(self.device)

    def _contrast(self, metaclip: MetaCLIP, scenes: Scenes, generator: torch.Generator) -> Tensor:
        """Symmetric cross-entropy between pictures and captions of the batch."""
        chosen = [
            frames[torch.randint(len(frames), (self.options.pictures,), generator=generator)]
            for frames in scenes.clip_frames
        ]
        pixels = normalize_clip(torch.cat(chosen).to(self.device))
        tokens = [tokenize(metaclip.tokenizer, caption, self.device) for caption in scenes.captions]
        ids, mask = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        pictures = F.normalize(metaclip.model.get_image_features(pixels).pooler_output.float(), dim=-1)
        texts = F.normalize(
            metaclip.model.get_text_features(ids, attention_mask=mask).pooler_output.float(), dim=-1
        )
        scores = (
            pictures @ texts.T * metaclip.model.logit_scale.clamp(max=4.6).exp()
        )  # (clips * pictures, clips)
        owner = torch.arange(len(texts), device=self.device).repeat_interleave(self.options.pictures)
        # Each caption has several pictures: its target is spread over them.
        spread = F.one_hot(owner).float().T / self.options.pictures
        return (F.cross_entropy(scores, owner) + F.cross_entropy(scores.T, spread)) / 2


class TextSource(Protocol):
    """Where pretraining texts come from."""

    def batch(self, step: int, count: int) -> Sequence[str]:
        """The texts of one step."""


class TextLearner(Learner):
    """T5's encoder fills in missing words."""

    averaged = ("t5",)

    def __init__(
        self, t5: T5Text, texts: TextSource, batch: int = 32, learning_rate: float = 1e-3, seed: int = 0
    ) -> None:
        self.t5, self.texts, self.batch = t5, texts, batch
        self.device = t5.model.device
        width, words = t5.model.config.d_model, len(t5.tokenizer)
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
        states = self.t5.model(ids.masked_fill(hidden, blank), attention_mask=mask).last_hidden_state
        scores = self.head(states[hidden].float())
        loss = F.cross_entropy(scores, ids[hidden])
        right = (scores.argmax(dim=-1) == ids[hidden]).float().mean()
        update(loss, self.optimizers["t5"])
        return {"words": loss.item(), "right": right.item()}


def initialise_synchformer(synchformer: Synchformer, seed: int) -> None:
    """Values to start from, drawn from ``seed``; half of the patch filters start as differences in time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in synchformer.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif parameter.dim() == 3:  # class tokens and positions
                parameter.normal_(0, 0.05, generator=generator)
            else:
                fan_in = parameter[0].numel()
                parameter.normal_(0, fan_in**-0.5, generator=generator)
        filters = synchformer.vfeat_extractor.patch_embed_3d.proj.weight  # (D, 3, 2, 16, 16)
        moving = filters[: len(filters) // 2]
        moving[:, :, 1] = -moving[:, :, 0]
        moving *= 3.0  # what moves is small
