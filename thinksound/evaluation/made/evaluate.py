"""Evaluation on held-out synthetic clips: every row of the table, measured against the known truth.

Frames and texts are encoded once, into the output folder. A row is finished when its file exists, so an
interrupted evaluation resumes where it was, and several processes can share the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ... import __version__
from ...data.clips import texts_read
from ...data.prepare import fingerprint, prepare_clips
from ...data.shards import PreparedClips
from ...data.sources import made_sources
from ...errors import InputError
from ...families.protocol import TRANSFORMER
from ...pipeline import Pipeline
from ...progress import Progress
from ...request import Options
from ...runtime.placement import memory_errors
from ...synthetic.make import CLIP_S
from ...synthetic.seeds import MEASURED
from .examples import write_examples
from .judges import Judges
from .measures import loudest_dbfs, peak_dbfs
from .options import EXAMPLES_ROW, QUIET, EvaluationOptions
from .quiet import QuietScores, quiet_clip
from .results import Results
from .rows import Row, choose, table_rows
from .scores import ClipScores, score_clip
from .sounds import Sounds, decode


def evaluate_made(
    pipeline: Pipeline,
    judges: Judges,
    folder: Path,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure a model on held-out synthetic clips; writes ``results.json`` and ``table.md`` after every row.

    Args:
        pipeline: the model.
        judges: recognise kinds, materials, and onsets among other sounds.
        folder: for results and encoded clips; created if missing. Finished rows in it are kept.
        options: what is measured.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The path of the table.

    Raises:
        InputError: the folder holds results of other weights or settings, or a clip cannot be encoded.
        OutputError: the folder cannot be written.
    """
    options = options or EvaluationOptions()
    report = progress or (lambda stage, done, total: None)
    scale = pipeline.preset.guidance_scale if options.cfg_scale is None else options.cfg_scale
    rows = table_rows(scale, options.steps)
    wanted = choose(rows, options.rows)
    settings = {
        "preset": pipeline.preset.name,
        "weights": _fingerprint(pipeline),
        "clips of each split": options.count,
        "quiet videos": options.quiet_count,
        "first seed": MEASURED.start,
        "guidance scale": scale,
        "steps": options.steps,
        "version": __version__,
        "judges": judges.record,
    }
    results = Results(folder, rows, settings)
    for split in options.splits:
        if split == QUIET:
            if options.part[0] == 1 and not results.has_quiet():
                with memory_errors("a smaller --batch, --offload, or --dtype bfloat16"):
                    results.add_quiet(_listen_to_quiet(pipeline, options, scale, report))
            continue
        todo = [row for row in _share(wanted, options.part) if not results.has(split, row)]
        if not todo and not options.examples:
            continue
        sounds = _prepare(pipeline, split, options.count, folder, report)
        for recipe in dict.fromkeys(row.recipe for row in todo):
            same = [row for row in todo if row.recipe == recipe]
            with memory_errors("a smaller --batch, --offload, or --dtype bfloat16"):
                scores = _score(sounds, judges, same, options.batch, f"{split}, {same[0].title}", report)
            for row in same:
                results.add(split, row, scores[row.key])
        shown = next((row for row in wanted if row.key == EXAMPLES_ROW), None)
        if options.examples and shown is not None and results.has(split, shown):
            overall = [clip["overall"] for clip in results.read(split, shown)["clips"]]
            write_examples(sounds, shown, overall, options.examples, folder / "examples", split)
    return results.write()


def _share(rows: Sequence[Row], part: tuple[int, int]) -> list[Row]:
    """The rows of every N-th recipe from the I-th on, for ``part`` (I, N)."""
    recipes = list(dict.fromkeys(row.recipe for row in rows))[part[0] - 1 :: part[1]]
    return [row for row in rows if row.recipe in recipes]


def _prepare(pipeline: Pipeline, split: str, count: int, folder: Path, report: Progress) -> Sounds:
    clips = folder / f"clips-{split}"
    sources = made_sources(split, MEASURED[:count])
    prepared = prepare_clips(
        pipeline,
        sources,
        clips,
        duration_s=CLIP_S,
        progress=lambda _, done, total: report(f"{split}, encoding", done, total),
    )
    if prepared.skipped:  # the remaining clips would be compared with the wrong truth
        first = prepared.skipped[0]
        raise InputError(
            f"{first.name} cannot be measured ({first.reason}); try --dtype float32, in another output folder"
        )
    return Sounds(pipeline, split, PreparedClips(clips))


def _score(
    sounds: Sounds, judges: Judges, rows: Sequence[Row], batch: int, stage: str, report: Progress
) -> dict[str, list[ClipScores]]:
    """Scores of every clip for rows that share a recipe, by row key."""
    recipe, count = rows[0].recipe, len(sounds.references)
    scores: dict[str, list[ClipScores]] = {row.key: [] for row in rows}
    for start in range(0, count, batch):
        report(stage, start, count)
        indices = range(start, min(start + batch, count))
        for index, waveform in zip(indices, sounds.make(recipe, indices), strict=True):
            judgement = judges.listen(waveform)
            for row in rows:
                reference = sounds.reference(recipe, sounds.partner(index) if row.swapped else index)
                scores[row.key].append(score_clip(reference, waveform, judgement, sounds.latent_rate_hz))
    report(stage, count, count)
    return scores


def _listen_to_quiet(
    pipeline: Pipeline, options: EvaluationOptions, scale: float, report: Progress
) -> list[QuietScores]:
    """The levels of the sounds that the model makes for quiet videos."""
    scores: list[QuietScores] = []
    family, count = pipeline.family, options.quiet_count
    for start in range(0, count, options.batch):
        report("quiet videos", start, count)
        indices = range(start, min(start + options.batch, count))
        clips = [quiet_clip(index, family.views) for index in indices]
        texts = [texts_read(family, clip.texts) for clip in clips]
        features = pipeline.encode(
            [clip.frames for clip in clips], [each.caption for each in texts], [each.cot for each in texts]
        )
        settings = [Options(options.steps, scale, clip.seed) for clip in clips]
        samples = pipeline.sample(features, CLIP_S, settings)
        for index, clip, sample in zip(indices, clips, samples, strict=True):
            waveform = decode(pipeline, sample.latents, index)
            scores.append(
                QuietScores(
                    clip.kind,
                    clip.seed,
                    bool(clip.texts.caption),
                    loudest_dbfs(waveform, family.sound.sample_rate),
                    peak_dbfs(waveform),
                )
            )
    report("quiet videos", count, count)
    return scores


def _fingerprint(pipeline: Pipeline) -> str:
    """Hash of all weights: name, dtype and first 8 values of every tensor."""
    digest = hashlib.sha256(fingerprint(pipeline).encode())
    for name, tensor in _made_by(pipeline):
        digest.update(f"{name} {tensor.dtype} {tensor.flatten()[:8].float().cpu().tolist()}\n".encode())
    return digest.hexdigest()


def _made_by(pipeline: Pipeline) -> Iterator[tuple[str, Tensor]]:
    family = pipeline.family
    for name in (TRANSFORMER, *family.sound_networks):
        yield from pipeline.model.networks[name].state_dict().items()
