"""Several requests through the networks together: each network has its turn once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from .errors import InputError
from .families.protocol import TRANSFORMER, Features, FrameStep, Model, TextStep
from .progress import Progress
from .request import Options
from .runtime.placement import Placement

# Frames of one video by the names of the family's views, uint8 (N, H, W, 3); a view may be missing.
Frames = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """What `Pipeline.sample` returns, each ``(C, T)`` float32 on the CPU."""

    noise: Tensor
    latents: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        """Allows ``noise, latents = pipeline.sample(...)``."""
        yield from (self.noise, self.latents)


def one_each(name: str, given: Any, count: int) -> list[Any]:
    """Return ``count`` values: those of the sequence ``given``, or ``given`` itself repeated."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise InputError(f"{name}: {len(given)} for {count} requests; give one for each, or one for all")
    return list(given)


def encode_requests(
    model: Model,
    placement: Placement,
    frames: Sequence[Frames],
    texts: Sequence[Mapping[str, str]],
    progress: Progress | None = None,
) -> list[Features]:
    """Turn frames and texts into features on the CPU; on GPUs, the encoders run side by side.

    Args:
        model: whose encoders run.
        placement: of its networks.
        frames: of each request.
        texts: of each request, as `Family.settle_texts` returns them.
        progress: called as ``progress(network, done, total)``, possibly from another thread.
    """
    encoded = [dict[str, Tensor]() for _ in frames]

    def run(network: str) -> None:
        with placement.on_device(network):
            for reading in model.text_steps:
                if reading.network == network:
                    _encode_texts(reading, texts, encoded)
            for seeing in model.frame_steps:
                if seeing.network == network:
                    _encode_frames(seeing, frames, encoded, progress)

    encoders = model.encoders
    if placement.plan.concurrent_encoding and len(encoders) > 1:
        with ThreadPoolExecutor(len(encoders) - 1) as pool:
            pending = [pool.submit(run, name) for name in encoders[:-1]]
            run(encoders[-1])
            for each in pending:
                each.result()
    else:
        for name in encoders:
            run(name)
    return list(encoded)


def _encode_texts(
    step: TextStep, texts: Sequence[Mapping[str, str]], encoded: Sequence[dict[str, Tensor]]
) -> None:
    known: dict[str, Tensor] = {}  # equal texts are encoded once
    for each, features in zip(texts, encoded, strict=True):
        text = each[step.text]
        if text not in known:
            known[text] = step.encode(text).cpu()
        features[step.feature] = known[text]


def _encode_frames(
    step: FrameStep,
    frames: Sequence[Frames],
    encoded: Sequence[dict[str, Tensor]],
    progress: Progress | None,
) -> None:
    present = [index for index, each in enumerate(frames) if step.view in each]
    for place, index in enumerate(present):

        def report(done: int, total: int, place: int = place) -> None:
            assert progress is not None
            progress(step.network, place * total + done, len(present) * total)

        found = step.encode(frames[index][step.view], progress=report if progress else None)
        encoded[index][step.feature] = found.cpu()


def sample_requests(
    model: Model,
    placement: Placement,
    features: Sequence[Features],
    durations: Sequence[float],
    settled: Sequence[Options],
    progress: Progress | None = None,
) -> list[Sample]:
    """Draw noise and turn it into latents, for requests of any lengths.

    Args:
        model: whose transformer runs.
        placement: of its networks.
        features: of each request.
        durations: seconds of sound of each request.
        settled: options of each request, with nothing left open.
        progress: called as ``progress("sample", done, total)``.
    """
    noises = [
        model.draw_noise(cast(int, each.seed), duration_s)
        for each, duration_s in zip(settled, durations, strict=True)
    ]
    # Requests with equal lengths of latents and features, steps and guidance form a batch.
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, (each, noise) in enumerate(zip(settled, noises, strict=True)):
        lengths = tuple((name, len(feature)) for name, feature in features[index].items())
        key = (noise.shape, lengths, each.num_inference_steps, each.cfg_scale)
        groups.setdefault(key, []).append(index)
    total = sum(cast(int, settled[group[0]].num_inference_steps) for group in groups.values())
    samples: dict[int, Sample] = {}
    done = 0
    for group in groups.values():
        first = settled[group[0]]
        steps = cast(int, first.num_inference_steps)
        with placement.on_device(TRANSFORMER):
            latents = model.sample(
                [features[index] for index in group],
                durations[group[0]],
                torch.stack([noises[index] for index in group]),
                steps,
                cast(float, first.cfg_scale),
                partial(_report, progress, done, total),
            ).cpu()
        done += steps
        samples |= {index: Sample(noises[index], one) for index, one in zip(group, latents, strict=True)}
    return [samples[index] for index in range(len(settled))]


def _report(progress: Progress | None, before: int, total: int, step: int) -> None:
    if progress:
        progress("sample", before + step, total)
