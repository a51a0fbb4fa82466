"""Scores of clips: the truth scores best, each damage lowers its own measure, and summaries are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thinksound.checkpoints.registry import bundled_dir
from thinksound.evaluation.made.judges import judges_folder, load_judges
from thinksound.evaluation.made.measures import Moments
from thinksound.evaluation.made.onsets import OnsetMatch
from thinksound.evaluation.made.rows import table_rows
from thinksound.evaluation.made.scores import (
    MEASURES,
    ClipScores,
    HeardMaterial,
    Reference,
    score_clip,
    summarise,
)
from thinksound.evaluation.made.spectra import RATE
from thinksound.evaluation.made.table import markdown_table
from thinksound.synthetic.kinds import KINDS
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.scene import Event, Room
from thinksound.synthetic.seeds import JUDGES
from thinksound.synthetic.sound import synthesise

pytestmark = pytest.mark.slow

LATENT_RATE = 31.25
SEEDS = range(JUDGES.stop - 32, JUDGES.stop)


@pytest.fixture(scope="module")
def judges():
    return load_judges(judges_folder(bundled_dir()))


@pytest.fixture(scope="module")
def references():
    return [Reference.of(make_scene("standard", seed)) for seed in SEEDS]


def measured(judges, references, change=lambda waveform: waveform):
    scores = []
    for reference in references:
        waveform = np.ascontiguousarray(change(reference.waveform))
        scores.append(score_clip(reference, waveform, judges.listen(waveform), LATENT_RATE))
    return summarise(scores, "standard")


@pytest.fixture(scope="module")
def truth(judges, references):
    return measured(judges, references)


def test_the_truth_scores_full_marks(truth):
    assert truth["onset_f1_50"] >= 0.99
    assert truth["onset_f1_50_learned"] >= 0.99
    assert truth["kind"] >= 0.95
    assert truth["material"] >= 0.9
    assert truth["pan"] == pytest.approx(1)
    assert truth["level_engine_rain"] == truth["level_slide"] == pytest.approx(1)
    assert truth["buzz_db"] == truth["flatness_db"] == 0
    assert truth["decay_ratio"] == pytest.approx(1)
    assert truth["decay_error"] == 0
    assert truth["onset_f1_25"] >= 0.99
    assert truth["tones"] == 1
    assert truth["floor_db"] == 0
    assert truth["pitch"] >= 0.9
    assert truth["pitch_cents"] < 10
    assert {each.key for each in MEASURES} - set(truth) == {
        "caption",
        "caption_against_color",
        "true_material",
    }


def test_tones_are_those_of_the_body_and_not_of_the_noise(judges, references):
    """The same scenes with other noise have nearly the same tones; other scenes have others."""

    def tones(change):
        return summarise(
            [
                score_clip(each, sound, judges.listen(sound), LATENT_RATE)
                for each in references
                for sound in [synthesise(change(each.scene), RATE)]
            ],
            "standard",
        )["tones"]

    def with_sources(scene, change):
        return replace(scene, sources=tuple(map(change, scene.sources)))

    again = tones(lambda scene: with_sources(scene, lambda each: replace(each, seed=each.seed + 1)))
    larger = tones(lambda scene: with_sources(scene, lambda each: replace(each, size=1.2 * each.size)))
    assert again > 0.9
    assert larger < 0.4


def test_each_defect_shows_in_its_measure(judges, references, truth):
    late = measured(judges, references, lambda sound: np.roll(sound, round(0.3 * RATE), axis=1))
    assert late["onset_f1_100"] < 0.5
    assert late["pitch"] < truth["pitch"] - 0.2
    assert late["pitch_cents"] > 50
    soon = measured(judges, references, lambda sound: np.roll(sound, round(0.035 * RATE), axis=1))
    assert soon["onset_f1_25"] < 0.3 < 0.9 < soon["onset_f1_50"]
    assert soon["tones"] == 1, "heard from each sound's own peak on"
    hiss = 0.02 * np.random.default_rng(0).standard_normal((2, 4 * RATE))
    noisy = measured(judges, references, lambda sound: (sound + hiss).astype(np.float32))
    assert noisy["floor_db"] > 20
    swapped = measured(judges, references, lambda sound: sound[::-1])
    assert swapped["pan"] == pytest.approx(-1, abs=1e-3)
    assert swapped["onset_f1_50"] == truth["onset_f1_50"]

    pulse = 1 + 0.4 * np.sin(2 * np.pi * LATENT_RATE * np.arange(4 * RATE) / RATE)
    assert measured(judges, references, lambda sound: (sound * pulse).astype(np.float32))["buzz_db"] > 3
    gate = np.tile(np.linspace(1, 0, round(0.1 * RATE)), 40).astype(np.float32)
    assert measured(judges, references, lambda sound: sound * gate)["decay_error"] > 0.2


def struck_at(*onsets: float, material: str = "wood", size: float | None = None) -> Reference:
    """A ball in the open air that strikes at these times of four seconds."""
    scene = next(scene for seed in SEEDS if (scene := make_scene("standard", seed)).sources[0].kind == "ball")
    events = tuple(Event(onset, 0.8, 0.0) for onset in onsets)
    ball = scene.sources[0]
    source = replace(ball, material=material, size=size or ball.size, events=events)
    return Reference.of(replace(scene, sources=(source,), room=Room("open air", 0.05, 0.0)))


@pytest.mark.parametrize(
    ("onsets", "counted"),
    [
        ((1.0, 2.0, 3.0), 3),
        ((1.0, 1.35, 3.0), 2),  # the second comes within 0.4 s of the first
        ((1.0, 1.15, 3.0), 1),  # and also the first within 0.2 s before the second
        ((0.05, 3.7), 1),  # the last has 0.3 s until the clip ends; what was before the clip is silence
    ],
)
def test_ring_downs_are_measured_of_impacts_with_silence_around_them(judges, onsets, counted):
    reference = struck_at(*onsets)
    sound = reference.waveform
    scores = score_clip(reference, sound, judges.listen(sound), LATENT_RATE)
    assert scores.decays == (1.0,) * counted


def test_a_ring_down_that_the_next_impact_cuts_off_is_left_out(judges):
    # Large pieces of metal do not fall by 20 dB within 0.4 s.
    reference = struck_at(1.0, 1.45, 3.0, material="metal", size=1.5)
    sound = reference.waveform
    assert score_clip(reference, sound, judges.listen(sound), LATENT_RATE).decays == (1.0, 1.0)


def test_a_ring_down_ratio_is_of_the_sound_over_the_truth(judges):
    reference = struck_at(1.0, 2.0, 3.0)
    longer = replace(reference.scene.sources[0], size=1.6 * reference.scene.sources[0].size)
    sound = synthesise(replace(reference.scene, sources=(longer,)), RATE)
    decays = score_clip(reference, sound, judges.listen(sound), LATENT_RATE).decays
    assert len(decays) == 3
    assert all(1.2 < ratio < 2 for ratio in decays)  # a larger body rings longer


def test_silence_scores_nothing_and_breaks_nothing(judges, references):
    silent = measured(judges, references, np.zeros_like)
    assert silent["onset_f1_100"] == 0
    assert silent["level_engine_rain"] == silent["pan"] == silent["tones"] == 0
    assert silent["floor_db"] > 50
    assert all(np.isfinite(value) for value in silent.values())


def test_contradicting_texts_name_another_material_wherever_there_is_a_choice():
    contradicted = 0
    for split in ("standard", "hard"):
        for seed in SEEDS:
            scene = make_scene(split, seed)
            reference = Reference.contradicting(scene)
            assert reference == Reference.contradicting(scene)
            for source, material in zip(scene.sources, reference.materials, strict=True):
                assert material in KINDS[source.kind].materials
                assert (material == source.material) == (len(KINDS[source.kind].materials) == 1)
                contradicted += material != source.material
    assert contradicted > 60


def test_a_contradicting_reference_sounds_like_what_the_texts_say(judges):
    clips = [Reference.contradicting(make_scene("standard", seed)) for seed in SEEDS]
    scores = [score_clip(each, each.waveform, judges.listen(each.waveform), LATENT_RATE) for each in clips]
    obedience = summarise(scores, "standard", contradicted=True)
    assert obedience["caption"] >= 0.9
    assert obedience["caption_against_color"] >= 0.85
    assert "material" not in obedience
    true = [Reference.of(each.scene).waveform for each in clips]
    scores = [
        score_clip(each, sound, judges.listen(sound), LATENT_RATE)
        for each, sound in zip(clips, true, strict=True)
    ]
    assert summarise(scores, "standard", contradicted=True)["caption"] < 0.1


def clip(**changes):
    return replace(
        ClipScores(seed=0, kinds=("ball",), heard=("ball",), materials=(), pan=Moments()), **changes
    )


def test_rows_add_up_by_their_definitions():
    heard = [
        HeardMaterial("wood", "wood", "stone", True),
        HeardMaterial("wood", "metal", "metal", False),
        HeardMaterial("glass", "glass", "rubber", False),
    ]
    clips = [
        clip(
            plain=tuple(OnsetMatch(hits, 10, 10) for hits in (2, 4, 9, 10)),
            learned=tuple(OnsetMatch(hits, 10, 10) for hits in (0, 0, 0, 5)),
            materials=(heard[0],),
            decays=(2.0, 0.5),
            floors=(10.0, 30.0),
            tones=(1, 4),
        ),
        clip(
            plain=(OnsetMatch(1, 1, 1),) * 4,
            learned=(OnsetMatch(1, 1, 1),) * 4,
            heard=("rain",),
            materials=(heard[1],),
            floors=(-10.0,),
            tones=(2, 2),
        ),
        clip(
            kinds=("rain", "slide"),
            heard=("rain", "ball"),
            materials=(heard[2],),
            levels={"rain": 0.5, "slide": 0.1},
            buzz_db=4.0,
        ),
        clip(heard=("ball",), pitch=0.5, pitch_cents=100.0),
        clip(heard=("ball",), pitch=1.0, pitch_cents=20.0),
    ]
    standard, hard = summarise(clips, "standard"), summarise(clips, "hard")
    assert standard["onset_f1_50"] == pytest.approx(20 / 22)
    assert hard["onset_f1_50"] == hard["onset_f1_50_learned"] == pytest.approx(2 / 22)
    assert standard["onset_f1_10"] == pytest.approx(6 / 22)
    assert standard["onset_f1_25"] == pytest.approx(10 / 22)
    assert standard["onset_f1_100"] == 1
    assert standard["kind"] == pytest.approx(4 / 6)
    assert standard["material"] == pytest.approx(2 / 3)
    assert standard["material_worst"] == 0.5
    assert standard["level_engine_rain"] == 0.5
    assert standard["level_slide"] == 0.1
    assert standard["buzz_db"] == 4.0
    assert standard["decay_ratio"] == pytest.approx(1)
    assert standard["decay_error"] == pytest.approx(1)
    assert standard["floor_db"] == pytest.approx(10)
    assert standard["tones"] == pytest.approx(3 / 6), "every tone weighs the same"
    assert standard["pitch"] == 0.75
    assert standard["pitch_cents"] == 60
    assert not {"tones", "floor_db", "pitch", "pitch_cents"} & set(summarise(clips[2:3], "standard"))
    obedience = summarise(clips, "standard", contradicted=True)
    assert obedience["caption"] == pytest.approx(2 / 3)
    assert obedience["caption_against_color"] == 1
    assert obedience["true_material"] == pytest.approx(1 / 3)


def test_a_table_has_the_rows_that_are_there_and_the_measures_they_have():
    titles = {row.key: row.title for row in table_rows(2.0, 24)}
    text = markdown_table(titles, {"generated": {"kind": 0.5}, "truth": {"kind": 1.0, "buzz_db": 0.25}})
    assert text.splitlines() == [
        "|  | kind | buzz, dB over truth |",
        "| --- | --- | --- |",
        "| truth | 1.000 | +0.2 |",
        "| generated | 0.500 |  |",
    ]
