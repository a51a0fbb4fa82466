"""Scores of one sound against its scene, and their summary over many clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...synthetic.kinds import ENGINE_HZ, KINDS
from ...synthetic.materials import MATERIALS
from ...synthetic.scene import Scene
from ...synthetic.sound import synthesise
from .judges import Judgement
from .measures import (
    TRACK_S,
    Moments,
    attack_floors,
    buzz_db,
    decay_times,
    flatness_db,
    impact_tones,
    level_correlation,
    pan_moments,
    pitch_agreement,
    pitch_error_cents,
    pitch_track,
    tones_found,
)
from .onsets import OnsetMatch, detect_onsets, match_onsets, total, true_onsets
from .spectra import RATE, FloatArray, Waveform

TOLERANCES_S = (0.01, 0.025, 0.05, 0.1)
ISOLATED_S = 0.4  # for this long nothing follows an impact whose ring-down is measured
APART_S = 0.2  # for this long nothing precedes an impact that is measured, nor follows one whose tones are
_CLEAR_DB = (
    -50.0
)  # the true sound is this far below an impact's peak where the floor of its attack is measured
_LONGEST_S = 1.5  # limit of a measured ring-down
_NOISY = ("rain", "slide")


@dataclass(frozen=True)
class Reference:
    """A scene, and the materials that its texts name."""

    scene: Scene
    materials: tuple[str, ...]  # one per source, as the texts name them

    @classmethod
    def of(cls, scene: Scene) -> Reference:
        """The scene with texts that name its true materials."""
        return cls(scene, tuple(source.material for source in scene.sources))

    @classmethod
    def contradicting(cls, scene: Scene) -> Reference:
        """The scene with texts that name another material for every kind that has several, by its seed."""
        rng = np.random.default_rng([scene.seed, 43])
        materials = []
        for source in scene.sources:
            others = [name for name in KINDS[source.kind].materials if name != source.material]
            materials.append(str(rng.choice(others)) if others else source.material)
        return cls(scene, tuple(materials))

    @cached_property
    def waveform(self) -> Waveform:
        """The sound (2, A), at `spectra.RATE`, of the scene with the materials that the texts name."""
        sources = tuple(
            replace(source, material=material)
            for source, material in zip(self.scene.sources, self.materials, strict=True)
        )
        return synthesise(replace(self.scene, sources=sources), RATE)

    @property
    def is_impulsive(self) -> bool:
        """Whether the scene has any impact."""
        return any(source.events for source in self.scene.sources)


@dataclass(frozen=True)
class HeardMaterial:
    """Which material the texts name, the judge hears, and the frames show, of a source with a choice.

    Where the two texts name different ones, ``said`` is the one that is not true.
    """

    said: str
    heard: str
    true: str
    against_color: bool  # the source has the usual colour of another material


@dataclass(frozen=True)
class ClipScores:
    """All measures of one clip; those that do not apply to it are None or empty."""

    seed: int
    kinds: tuple[str, ...]  # of the sources
    heard: tuple[str, ...]  # the same number of kinds, those that the judge hears most clearly
    materials: tuple[HeardMaterial, ...]
    pan: Moments
    plain: tuple[OnsetMatch, ...] = ()  # per tolerance, by the plain detector
    learned: tuple[OnsetMatch, ...] = ()  # per tolerance, by the judge
    levels: dict[str, float] | None = None  # continuous kind -> correlation of the whole clip's level
    buzz_db: float | None = None  # minus that of the true sound
    flatness_db: float | None = None  # minus that of the true sound
    decays: tuple[float, ...] = ()  # ratios of ring-down times to the true ones
    floors: tuple[float, ...] = ()  # dB before the peaks of impacts, minus those of the true sound
    tones: tuple[int, int] = (0, 0)  # number of true tones of impacts that the sound has, and of all
    pitch: float | None = None  # share of the frames in tune
    pitch_cents: float | None = None  # median error

    @property
    def overall(self) -> float:
        """One score from 0 to 1, by which examples are chosen."""
        parts = [float(np.mean([kind in self.heard for kind in self.kinds]))]
        parts += [float(each.said == each.heard) for each in self.materials]
        parts += [self.learned[TOLERANCES_S.index(0.05)].f1] if self.learned else []
        parts += [max(0.0, each) for each in (self.levels or {}).values()]
        return float(np.mean(parts))


def score_clip(
    reference: Reference, waveform: Waveform, judgement: Judgement, latent_rate_hz: float
) -> ClipScores:
    """Score a sound (2, A) at `spectra.RATE` as the sound of a scene.

    Args:
        reference: the scene and its materials.
        waveform: the sound.
        judgement: of the sound.
        latent_rate_hz: of the codec that made the sound; a buzz would have this rate.
    """
    scene, true = reference.scene, reference.waveform
    kinds = tuple(source.kind for source in scene.sources)
    materials = tuple(
        HeardMaterial(
            said,
            judgement.material_of(source.kind),
            source.material,
            source.color_tells and said != source.material,
        )
        for source, said in zip(scene.sources, reference.materials, strict=True)
        if len(KINDS[source.kind].materials) > 1
    )
    scores = ClipScores(
        seed=scene.seed,
        kinds=kinds,
        heard=judgement.likeliest_kinds(len(kinds)),
        materials=materials,
        pan=pan_moments(waveform, true),
    )
    if reference.is_impulsive:
        onsets = true_onsets(scene)
        found = detect_onsets(waveform, RATE)
        scores = replace(
            scores,
            plain=tuple(match_onsets(onsets, found, each) for each in TOLERANCES_S),
            learned=tuple(match_onsets(onsets, judgement.onsets, each) for each in TOLERANCES_S),
        )
    continuous = [source for source in scene.sources if source.control is not None]
    if continuous:
        followed = level_correlation(waveform, true)
        scores = replace(scores, levels={source.kind: followed for source in continuous})
    if any(kind in _NOISY for kind in kinds):
        scores = replace(
            scores,
            buzz_db=buzz_db(waveform, latent_rate_hz) - buzz_db(true, latent_rate_hz),
            flatness_db=flatness_db(waveform) - flatness_db(true),
        )
    if not continuous:
        scores = replace(
            scores,
            decays=_decays(scene, waveform, true),
            floors=_floors(scene, waveform, true),
            tones=_tones(scene, waveform, true),
        )
    engine = next((source.control for source in continuous if source.kind == "engine"), None)
    if engine is not None:
        found_hz = pitch_track(waveform, 0.9 * ENGINE_HZ[0], 1.1 * ENGINE_HZ[1])
        true_hz = engine.at(np.arange(len(found_hz), dtype=np.float64) * TRACK_S)
        scores = replace(
            scores,
            pitch=pitch_agreement(found_hz, true_hz),
            pitch_cents=pitch_error_cents(found_hz, true_hz),
        )
    return scores


def _decays(scene: Scene, waveform: Waveform, true: Waveform) -> tuple[float, ...]:
    """Ratios of ring-down times to the true ones, for impacts that nothing follows for `ISOLATED_S`."""
    onsets, spans = _isolated(scene, ISOLATED_S)
    spans = np.minimum(spans - 0.06, _LONGEST_S)
    expected = decay_times(true, onsets, spans)
    found = decay_times(waveform, onsets, spans)
    # Left out are impacts whose true sound does not fall by 20 dB within its span.
    complete = expected < spans - 0.02
    return tuple((np.maximum(found, 0.005) / np.maximum(expected, 0.005))[complete].tolist())


def _floors(scene: Scene, waveform: Waveform, true: Waveform) -> tuple[float, ...]:
    """Floors of attacks in dB minus the true ones, for impacts that rise out of silence in the true sound."""
    onsets, _ = _isolated(scene, APART_S)
    expected = attack_floors(true, onsets)
    clear = expected < _CLEAR_DB
    return tuple((attack_floors(waveform, onsets) - expected)[clear].tolist())


def _tones(scene: Scene, waveform: Waveform, true: Waveform) -> tuple[int, int]:
    """The number of true tones of isolated impacts that the sound has too, and the number of all."""
    onsets, _ = _isolated(scene, APART_S)
    expected, found = impact_tones(true, onsets), impact_tones(waveform, onsets)
    return sum(map(tones_found, expected, found)), sum(map(len, expected))


def _isolated(scene: Scene, after_s: float) -> tuple[FloatArray, FloatArray]:
    """Onsets (N,) of the impacts that nothing precedes for `APART_S` nor follows for ``after_s``.

    Also returns the seconds (N,) until the next impact or the end of the clip.
    """
    onsets = np.sort(np.concatenate([source.onsets for source in scene.sources]))
    spans = np.diff(np.append(onsets, scene.duration_s))
    before = np.diff(np.insert(onsets, 0, -1.0))
    isolated = (spans >= after_s) & (before >= APART_S)
    return onsets[isolated], spans[isolated]


@dataclass(frozen=True)
class Measure:
    """One column of the table: its key in the results, its title and its number format."""

    key: str
    title: str
    form: str


MEASURES = (
    Measure("onset_f1_25", "onset F1 ±25 ms", ".3f"),
    Measure("onset_f1_50", "onset F1 ±50 ms", ".3f"),
    Measure("onset_f1_100", "onset F1 ±100 ms", ".3f"),
    Measure("kind", "kind", ".3f"),
    Measure("material", "material, all", ".3f"),
    Measure("material_worst", "material, worst", ".3f"),
    Measure("caption", "follows text", ".3f"),
    Measure("caption_against_color", "against colour", ".3f"),
    Measure("true_material", "keeps true material", ".3f"),
    Measure("pan", "panning", ".3f"),
    Measure("level_engine_rain", "level, engine and rain", ".3f"),
    Measure("level_slide", "level, slide", ".3f"),
    Measure("buzz_db", "buzz, dB over truth", "+.1f"),
    Measure("flatness_db", "flatness, dB over truth", "+.1f"),
    Measure("decay_ratio", "ring-down over truth", ".2f"),
    Measure("decay_error", "ring-down error, octaves", ".2f"),
    Measure("floor_db", "attack floor, dB over truth", "+.1f"),
    Measure("tones", "tones", ".3f"),
    Measure("pitch", "engine in tune", ".3f"),
    Measure("pitch_cents", "engine pitch error, cents", ".0f"),
)


def summarise(clips: Sequence[ClipScores], split: str, contradicted: bool = False) -> dict[str, float]:
    """The measures of a row; those that apply to no clip are left out.

    Args:
        clips: at least one.
        split: hard clips take their onsets from the judge, standard ones from the plain detector.
        contradicted: a text named other materials, so the materials heard tell whether it is followed.
    """
    result: dict[str, float] = {}
    for place, tolerance_s in enumerate(TOLERANCES_S):
        name = f"{1_000 * tolerance_s:g}"
        plain = [each.plain[place] for each in clips if each.plain]
        learned = [each.learned[place] for each in clips if each.learned]
        if plain:
            result[f"onset_f1_{name}_plain"] = total(plain).f1
            result[f"onset_f1_{name}_learned"] = total(learned).f1
            chosen = "plain" if split == "standard" else "learned"
            result[f"onset_f1_{name}"] = result[f"onset_f1_{name}_{chosen}"]
    result["kind"] = _mean(kind in each.heard for each in clips for kind in each.kinds)
    heard = [material for each in clips for material in each.materials]
    if heard:
        result |= _obedience(heard) if contradicted else _materials(heard)
    result["pan"] = sum((each.pan for each in clips), Moments()).correlation
    for key, kinds in (("level_engine_rain", ("engine", "rain")), ("level_slide", ("slide",))):
        values = [value for each in clips for kind, value in (each.levels or {}).items() if kind in kinds]
        if values:
            result[key] = _mean(values)
    for key, found in (
        ("buzz_db", [each.buzz_db for each in clips if each.buzz_db is not None]),
        ("flatness_db", [each.flatness_db for each in clips if each.flatness_db is not None]),
        ("floor_db", [floor for each in clips for floor in each.floors]),
        ("pitch", [each.pitch for each in clips if each.pitch is not None]),
        ("pitch_cents", [each.pitch_cents for each in clips if each.pitch_cents is not None]),
    ):
        if found:
            result[key] = _mean(found)
    matched, tones = (sum(each.tones[place] for each in clips) for place in (0, 1))
    if tones:
        result["tones"] = matched / tones
    decays = np.log2([ratio for each in clips for ratio in each.decays])
    if len(decays):
        result["decay_ratio"] = float(2 ** decays.mean())
        result["decay_error"] = float(np.abs(decays).mean())
    return result


def _materials(heard: Sequence[HeardMaterial]) -> dict[str, float]:
    recalls = [
        _mean(each.heard == name for each in heard if each.said == name)
        for name in MATERIALS
        if any(each.said == name for each in heard)
    ]
    return {"material": _mean(each.said == each.heard for each in heard), "material_worst": min(recalls)}


def _obedience(heard: Sequence[HeardMaterial]) -> dict[str, float]:
    result = {
        "caption": _mean(each.said == each.heard for each in heard),
        "true_material": _mean(each.true == each.heard for each in heard),
    }
    against = [each for each in heard if each.against_color]
    if against:
        result["caption_against_color"] = _mean(each.said == each.heard for each in against)
    return result


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([float(value) for value in values]))
