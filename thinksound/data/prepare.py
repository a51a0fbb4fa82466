"""Encode training clips once, so that a training step only runs the transformer.

Sources are split into groups, one per shard, and a shard depends only on its own group. An interrupted run
therefore resumes with the result of an uninterrupted one, and several processes can share a folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..errors import InputError, ThinkSoundError
from ..media.files import check_output, make_folder, whole_file
from ..pipeline import Pipeline
from ..progress import Progress
from ..runtime.placement import memory_errors
from .clips import Clip, Skipped, Source, hash_of, texts_read
from .shards import (
    INDEX,
    Batch,
    Layout,
    ShardHeader,
    compact,
    read_header,
    shard_path,
    write_index,
    write_shard,
)

SKIPPED = "skipped.csv"
SHARD_SIZE = 128  # sources
MIN_CLIP_S, MAX_CLIP_S = 1.0, 60.0
_GROUP = 8  # clips that are encoded together
_VAE_SAMPLES = 2**20  # in one call of the VAE's encoder: two published clips, or a group of tiny ones


@dataclass(frozen=True)
class Prepared:
    """What the folder holds after a run of `prepare_clips`."""

    clips: int
    skipped: tuple[Skipped, ...]
    shards: int  # finished
    shards_wanted: int

    @property
    def complete(self) -> bool:
        return self.shards == self.shards_wanted


def prepare_clips(
    pipeline: Pipeline,
    sources: Sequence[Source],
    folder: Path | str,
    *,
    duration_s: float | None = None,
    shard_size: int = SHARD_SIZE,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Encode the clips of ``sources`` into a folder for `shards.PreparedClips`.

    Existing shards that were made from the same sources are kept.

    Args:
        pipeline: provides the encoders.
        sources: in the order of the clips.
        folder: created if missing.
        duration_s: length of every clip in seconds, 1 to 60; None takes that of the family's training.
        shard_size: sources per shard.
        part: (I, N) encodes the I-th of N parts, counted from 1; the folder is complete when all are done.
        workers: threads that read sources ahead; None takes 1 if a CPU encodes, else up to 8.
        progress: called as ``progress("clips", done, total)`` with numbers of sources.

    Raises:
        InputError: the length is out of range, there are no sources or none is usable, or the folder holds
            clips of other networks or of another length.
        OutputError: the folder cannot be written.
        PlacementError: out of memory.
    """
    folder = Path(folder)
    if duration_s is None:
        duration_s = pipeline.family.trained_duration_s
    if not MIN_CLIP_S <= duration_s <= MAX_CLIP_S:
        raise InputError(
            f"duration_s {duration_s:g}: give {MIN_CLIP_S:g} to {MAX_CLIP_S:g} s", option="duration_s"
        )
    layout = Layout.of(pipeline.family, float(duration_s))
    groups = [sources[start : start + shard_size] for start in range(0, len(sources), shard_size)]
    if not groups:
        raise InputError("nothing to prepare: no files are named")
    work = _Work(pipeline, layout, groups, folder)
    make_folder(folder)
    check_output(folder / INDEX)
    todo = [number for number in work.missing() if number % part[1] == part[0] - 1]
    if todo:
        (folder / INDEX).unlink(missing_ok=True)
    total = sum(len(groups[number]) for number in todo)
    report = (lambda done: progress("clips", done, total)) if progress else (lambda done: None)
    if workers is None:
        on_cpu = "cpu" in pipeline.placement.plan.devices.values()
        workers = 1 if on_cpu else min(8, os.cpu_count() or 1)
    with memory_errors():
        work.make(todo, workers, report)
    return work.finish()


class _Work:
    """Fills one folder with shards."""

    def __init__(
        self, pipeline: Pipeline, layout: Layout, groups: Sequence[Sequence[Source]], folder: Path
    ) -> None:
        self._layout = layout
        self._groups = groups
        self._folder = folder
        self._encoder = _Encoder(pipeline)
        self._encoders = fingerprint(pipeline)
        self._sources = [hash_of(source.identity() for source in group) for group in groups]

    def missing(self) -> list[int]:
        """The numbers of the shards that have to be made.

        Raises:
            InputError: an existing shard has another layout or was encoded by other weights.
        """
        return [number for number in range(len(self._groups)) if self._header(number) is None]

    def make(self, numbers: Sequence[int], workers: int, report: Callable[[int], None]) -> None:
        """Make these shards; ``report`` is called with the number of sources done."""
        wanted = [source for number in numbers for source in self._groups[number]]
        with _read_ahead(wanted, self._layout, workers) as readings:
            counted = _counted(readings, report)
            for number in numbers:
                self._make_shard(number, islice(counted, len(self._groups[number])))
        report(len(wanted))

    def _make_shard(self, number: int, readings: Iterator[list[Clip | Skipped]]) -> None:
        skipped: list[Skipped] = []
        clips = _usable(readings, skipped)
        names: list[str] = []
        batches: list[Batch] = []
        while group := list(islice(clips, _GROUP)):
            batch = self._encoder.encode(group, self._layout)
            good = _finite(batch)
            for clip, is_good in zip(group, good.tolist(), strict=True):
                if is_good:
                    names.append(clip.name)
                else:
                    skipped.append(Skipped(clip.name, "its features hold values that are not numbers"))
            batches.append(compact(_chosen(batch, good)))
        header = ShardHeader(
            self._layout,
            self._encoders,
            self._sources[number],
            names,
            [[each.name, each.reason] for each in skipped],
        )
        together = _joined(batches) if names else None
        batches.clear()
        write_shard(self._folder, number, header, together)

    def finish(self) -> Prepared:
        """Write the list of what was skipped and, if every shard exists, the index.

        Raises:
            InputError: every shard exists and none holds a clip.
        """
        headers = [self._header(number) for number in range(len(self._groups))]
        there = [header for header in headers if header is not None]
        skipped = tuple(Skipped(name, reason) for header in there for name, reason in header.skipped)
        names = [header.names for header in there]
        clips = sum(map(len, names))
        table = io.StringIO()
        csv.writer(table).writerows([("name", "reason"), *((each.name, each.reason) for each in skipped)])
        with whole_file(self._folder / SKIPPED) as temporary:
            temporary.write_text(table.getvalue(), encoding="utf-8", newline="")
        if len(there) == len(headers):
            if not clips:
                raise InputError(
                    f"nothing could be prepared: {skipped[0].name}: {skipped[0].reason}"
                    f"{f' (and {len(skipped) - 1} more)' if len(skipped) > 1 else ''}; "
                    f"see {self._folder / SKIPPED}"
                )
            made_by = {"thinksound": __version__, "encoders": self._encoders}
            write_index(self._folder, self._layout, made_by, names)
        return Prepared(clips, skipped, len(there), len(headers))

    def _header(self, number: int) -> ShardHeader | None:
        """The header of a shard that is up to date; None if the shard has to be made."""
        path = shard_path(self._folder, number)
        header = read_header(path)
        if header is None:
            return None
        if header.layout != self._layout:
            raise InputError(
                f"{self._folder}: holds clips of {header.layout.duration_s:g} s for {header.layout.preset}, "
                f"wanted are {self._layout.duration_s:g} s for {self._layout.preset}; choose another folder"
            )
        if header.encoders != self._encoders:
            raise InputError(
                f"{self._folder}: holds clips that other weights of {self._layout.preset}, or the same in "
                "another dtype, have encoded; choose another folder"
            )
        return header if header.sources == self._sources[number] else None


def fingerprint(pipeline: Pipeline) -> str:
    """Hash of the encoders: name, dtype, shape and first 8 values of every tensor."""
    model = pipeline.model
    networks = (*(model.networks[name] for name in model.encoders), model.sound_encoder)
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            head = tensor.flatten()[:8].float().cpu().tolist()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {head}\n".encode())
    return digest.hexdigest()


@contextmanager
def _read_ahead(
    sources: Sequence[Source], layout: Layout, workers: int
) -> Iterator[Iterator[list[Clip | Skipped]]]:
    """Iterate over what each source gives, in order; threads read up to ``workers`` sources ahead."""

    def results() -> Iterator[list[Clip | Skipped]]:
        pending: deque[Future[list[Clip | Skipped]]] = deque()
        for source in sources:
            pending.append(pool.submit(_read, source, layout))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    pool = ThreadPoolExecutor(workers, "read")
    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)


def _counted(
    readings: Iterator[list[Clip | Skipped]], report: Callable[[int], None]
) -> Iterator[list[Clip | Skipped]]:
    for done, reading in enumerate(readings):
        report(done)
        yield reading


def _read(source: Source, layout: Layout) -> list[Clip | Skipped]:
    try:
        return list(source.read(layout))
    except ThinkSoundError as error:
        return [Skipped(source.name, str(error))]


def _usable(readings: Iterator[list[Clip | Skipped]], skipped: list[Skipped]) -> Iterator[Clip]:
    """Yield the clips; append the rest to ``skipped``."""
    for reading in readings:
        for each in reading:
            if isinstance(each, Clip):
                yield each
            else:
                skipped.append(each)


def _chosen(batch: Batch, which: Tensor) -> Batch:
    return batch.each(lambda part: part[which])


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch.of(
        {name: torch.cat([each.tensors[name] for each in batches]) for name in batches[0].tensors}
    )


def _finite(batch: Batch) -> Tensor:
    """Mask (B,) bool of the clips whose values are all finite."""
    return torch.stack(
        [part.reshape(len(part), -1).isfinite().all(1) for part in batch.tensors.values()]
    ).all(0)


class _Encoder:
    """Encodes groups of clips with a pipeline's encoders; each network runs once per group."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._device = pipeline.placement.plan.devices["vae"]
        pipeline.model.sound_encoder.to(self._device)  # generation never places it

    @torch.inference_mode()
    def encode(self, clips: Sequence[Clip], layout: Layout) -> Batch:
        """The features of clips of the layout's length."""
        texts = [texts_read(self._pipeline.family, clip.texts) for clip in clips]
        encoded = self._pipeline.encode(
            [clip.frames for clip in clips], [each.caption for each in texts], [each.cot for each in texts]
        )
        features = {
            condition.name: torch.stack(
                [
                    each[condition.name]
                    if condition.name in each
                    else torch.zeros(layout.shapes[condition.name])
                    for each in encoded
                ]
            )
            for condition in self._pipeline.family.conditions
        }
        mean, scale = self._encode_sound(torch.stack([clip.waveform for clip in clips]))
        return Batch(features, mean, scale, torch.tensor([bool(clip.frames) for clip in clips]))

    def _encode_sound(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """As `Model.encode_sound`, on the CPU, of waveforms (B, 2, A)."""
        model, size = self._pipeline.model, max(1, _VAE_SAMPLES // waveforms.shape[2])
        encoded = [model.encode_sound(part.to(self._device)) for part in waveforms.split(size)]
        mean, scale = (torch.cat(parts).float().cpu() for parts in zip(*encoded, strict=True))
        return mean, scale
