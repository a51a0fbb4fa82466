"""Evaluation on synthetic clips: rows, files, resuming after an interruption, and bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import thinksound
from thinksound.checkpoints.registry import bundled_dir
from thinksound.cli import main
from thinksound.data.prepare import prepare_clips
from thinksound.data.shards import PreparedClips
from thinksound.data.sources import made_sources
from thinksound.errors import InputError
from thinksound.evaluation.made.evaluate import evaluate_made
from thinksound.evaluation.made.judges import FOLDER, load_judges
from thinksound.evaluation.made.measures import peak_dbfs
from thinksound.evaluation.made.options import EvaluationOptions
from thinksound.evaluation.made.quiet import quiet_clip
from thinksound.evaluation.made.rows import TEXTS, Recipe, choose, table_rows
from thinksound.evaluation.made.sounds import Sounds
from thinksound.evaluation.made.spectra import RATE
from thinksound.families.tiny import SIZES, TinyFamily
from thinksound.pipeline import Pipeline
from thinksound.presets import TINY
from thinksound.sampling.noise import draw_noise
from thinksound.synthetic.make import CLIP_S
from thinksound.synthetic.seeds import MEASURED
from thinksound.synthetic.stream import scene_frames

pytestmark = pytest.mark.slow

JUDGES = bundled_dir() / FOLDER
MODEL = Recipe(guidance_scale=2.0, steps=2)
COUNT = 3


@pytest.fixture(scope="module")
def pipeline():
    return thinksound.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def judges():
    return load_judges(JUDGES)


@pytest.fixture(scope="module")
def clips(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    prepare_clips(pipeline, made_sources("standard", MEASURED[:COUNT]), folder, duration_s=CLIP_S)
    return PreparedClips(folder)


@pytest.fixture(scope="module")
def sounds(pipeline, clips):
    return Sounds(pipeline, "standard", clips)


@pytest.fixture(scope="module")
def finished(pipeline, judges, tmp_path_factory):
    """An evaluation of a few rows."""
    folder = tmp_path_factory.mktemp("finished")
    evaluate_made(pipeline, judges, folder, small("truth", "vae", "generated", "another"))
    return folder


def small(*rows, **changes):
    return EvaluationOptions(
        splits=("standard",), count=COUNT, quiet_count=7, steps=1, rows=rows or None, **changes
    )


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_rows_are_what_was_asked_for():
    keys = [row.key for row in table_rows(2.0, 24)]
    assert len(set(keys)) == len(keys)
    for key in ("truth", "vae", "generated", "another", "no-video", "no-text", "no-sync", "random"):
        assert key in keys
    assert {f"cfg-{scale}" for scale in (1, 3, 5, 7)} | {f"steps-{n}" for n in (4, 8, 16, 24, 48)} <= set(
        keys
    )
    more = {"caption-only", "cot-only", "caption-other", "cot-other", "fps-12", "fps-25", "fps-60"}
    assert more <= set(keys)
    rows = {row.key: row for row in table_rows(3.0, 24)}
    same = [key for key, row in rows.items() if row.recipe == rows["generated"].recipe]
    assert same == ["generated", "another", "cfg-3", "steps-24"], "made once, not four times"
    assert [row.key for row in choose(table_rows(2, 24), ["generated", "truth"])] == ["truth", "generated"]


def test_equal_recipes_give_equal_sounds_in_any_batch(sounds):
    together = sounds.make(MODEL, [0, 1, 2])
    alone = [sounds.make(MODEL, [index])[0] for index in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == (2, 4 * RATE)
        # Phases are found iteratively, which amplifies the rounding differences between batch sizes.
        assert np.linalg.norm(one - other) < 0.01 * np.linalg.norm(other)


def test_a_sound_is_the_one_that_the_pipeline_makes(pipeline, sounds, clips):
    """The measured sound is the one that users get: same features, same noise, same steps."""
    scene = sounds.references[1].scene
    batch = clips.batch([1])
    features = {name: part[0] for name, part in batch.features.items()}
    options = thinksound.Options(num_inference_steps=2, cfg_scale=2.0, seed=scene.seed)
    _, latents = pipeline.sample(features, scene.duration_s, options)
    expected = pipeline.decode_audio(latents).numpy()
    found = sounds.make(MODEL, [1])[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "change",
    [
        {"absent": ("video", "sync")},
        {"absent": ("text",)},
        {"absent": ("sync",)},
        {"texts": ("caption",)},
        {"texts": ("cot",)},
        {"contradicted": TEXTS},
        {"contradicted": ("caption",)},
        {"contradicted": ("cot",)},
        {"fps": 12},
        {"scrambled": True},
        {"guidance_scale": 5.0},
        {"steps": 4},
        {"maker": "codec"},
        {"maker": "truth"},
    ],
    ids=str,
)
def test_every_recipe_changes_the_sound(sounds, change):
    generated = sounds.make(MODEL, [1])[0]
    changed = sounds.make(replace(MODEL, **change), [1])[0]
    assert np.isfinite(changed).all()
    assert np.abs(changed - generated).max() > 1e-4


def test_what_is_absent_is_replaced_by_what_the_network_learned_for_it(pipeline, sounds, clips):
    """With all conditions absent and guidance 1, the sound is the unconditional one."""
    everything = replace(MODEL, guidance_scale=1.0, absent=("video", "text", "sync"))
    one, other = (sounds.make(everything, [index])[0] for index in (0, 1))
    batch = clips.batch([0])
    transformer, features = pipeline.model.transformer, batch.features
    empty = transformer.empty_features(features["clip_features"].shape[1], features["sync_features"].shape[1])
    noise = draw_noise(sounds.references[0].scene.seed, *batch.latent_mean.shape[1:])
    with torch.inference_mode():
        latents = pipeline.family.follow(transformer, empty, noise, 2, 1.0, lambda step: None)
    assert np.abs(one - pipeline.decode_audio(latents[0]).numpy()).max() < 1e-4
    assert np.abs(one - other).max() > 1e-4, "the noise still differs"


def test_texts_are_left_out_or_contradicted_one_by_one(sounds):
    true, other = (sounds.texts(replace(MODEL, contradicted=each), 0) for each in ((), TEXTS))
    assert true.caption != other.caption and true.cot != other.cot
    for recipe, caption, cot in (
        (replace(MODEL, texts=("caption",)), true.caption, ""),
        (replace(MODEL, texts=("cot",)), "", true.cot),
        (replace(MODEL, contradicted=("caption",)), other.caption, true.cot),
        (replace(MODEL, contradicted=("cot",)), true.caption, other.cot),
    ):
        texts = sounds.texts(recipe, 0)
        assert (texts.caption, texts.cot) == (caption, cot)


def test_a_caption_alone_is_what_a_user_gets_who_gives_no_more(pipeline, sounds, clips):
    scene = sounds.references[1].scene
    caption = sounds.texts(MODEL, 1).caption
    features = pipeline.encode(scene_frames(scene, pipeline.family.views), caption)
    options = thinksound.Options(num_inference_steps=2, cfg_scale=2.0, seed=scene.seed)
    _, latents = pipeline.sample(features, scene.duration_s, options)
    expected = pipeline.decode_audio(latents).numpy()
    found = sounds.make(replace(MODEL, texts=("caption",)), [1])[0]
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)  # shards are float16


def test_a_scene_at_its_own_frame_rate_sounds_as_before(sounds):
    fps = sounds.references[1].scene.fps
    before, again = (sounds.make(replace(MODEL, fps=each), [1])[0] for each in (None, fps))
    assert np.linalg.norm(again - before) < 0.02 * np.linalg.norm(before)  # shards are float16


def test_scrambling_leaves_the_model_alone(pipeline, sounds):
    state = pipeline.model.transformer.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    sounds.make(replace(MODEL, scrambled=True), [0])
    assert all(torch.equal(before[name], tensor) for name, tensor in state.items())


def test_a_partner_is_another_clip_of_the_same_sort(sounds):
    struck = [reference.is_impulsive for reference in sounds.references]
    assert len(set(struck)) == 2, "there are clips of both sorts"
    partners = [sounds.partner(index) for index in range(COUNT)]
    for index, partner in enumerate(partners):
        assert partner != index
        alone = struck.count(struck[index]) == 1
        assert alone or struck[partner] == struck[index]


def test_sounds_of_another_rate_are_brought_to_the_judges(pipeline, tmp_path):
    sizes = SIZES[TINY.size]
    faster = TinyFamily(TINY, replace(sizes, vae=replace(sizes.vae, sample_rate=32_000)))
    model = pipeline.model
    whole = {"metaclip": model.metaclip, "t5": model.t5, "vae": model.vae}  # more than what is placed
    changed = Pipeline(TINY, faster.assemble({**model.networks, **whole}), pipeline.placement)
    prepare_clips(changed, made_sources("standard", MEASURED[:1]), tmp_path, duration_s=CLIP_S)
    sounds = Sounds(changed, "standard", PreparedClips(tmp_path))
    assert sounds.latent_rate_hz == 62.5
    assert sounds.make(MODEL, [0])[0].shape == (2, 4 * RATE)


def test_an_evaluation_writes_a_table_and_every_clip(finished):
    record = results(finished)
    assert list(record["splits"]["standard"]) == ["truth", "vae", "generated", "another"]
    assert record["splits"]["hard"] == {}
    assert record["splits"]["standard"]["truth"]["pan"] == pytest.approx(1)
    assert record["settings"]["clips of each split"] == COUNT
    table = (finished / "table.md").read_text()
    assert table.startswith("## Standard")
    assert [line.split("|")[1].strip() for line in table.splitlines()[4:]] == [
        "truth",
        "truth through the VAE",
        "generated",
        "another clip's sound",
    ]
    row = json.loads((finished / "rows" / "standard-generated.json").read_text())
    assert [clip["seed"] for clip in row["clips"]] == list(MEASURED[:COUNT])


def test_finished_rows_are_kept_and_new_ones_join_them(pipeline, judges, finished, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}
    evaluate_made(pipeline, judges, folder, small("generated", "no-sync"))
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}
    assert set(after) - set(before) == {"standard-no-sync.json"}
    assert all(after[name] == before[name] for name in before)
    assert list(results(folder)["splits"]["standard"])[-1] == "no-sync"


def test_parts_make_every_row_once_and_the_same(pipeline, judges, finished, tmp_path):
    wanted = small("truth", "vae", "generated", "another")
    made = []
    for index in (1, 2):
        folder = tmp_path / f"part{index}"
        evaluate_made(pipeline, judges, folder, replace(wanted, part=(index, 2)))
        made.append({path.name for path in (folder / "rows").iterdir()})
    assert made[0].isdisjoint(made[1])
    assert made[0] | made[1] == {path.name for path in (finished / "rows").iterdir()}
    folder = tmp_path / "shared"
    for index in (2, 1):
        evaluate_made(pipeline, judges, folder, replace(wanted, part=(index, 2)))
    assert results(folder) == results(finished)


def test_quiet_videos_have_their_own_table_and_are_made_once(pipeline, judges, finished, tmp_path):
    folder = tmp_path / "quiet"
    shutil.copytree(finished, folder)
    options = replace(small(), splits=("quiet",), batch=4)
    evaluate_made(pipeline, judges, folder, replace(options, part=(2, 2)))
    assert "quiet" not in results(folder), "the first of several parts makes them"
    evaluate_made(pipeline, judges, folder, options)
    quiet = results(folder)["quiet"]
    assert {key: each["clips"] for key, each in quiet.items()} == {
        "all": 7,
        "still picture": 2,
        "black": 2,
        "plain colour": 1,
        "silent motion": 1,
        "shaking camera": 1,
        "with texts": 5,
        "without texts": 2,
    }
    row = folder / "rows" / "quiet.json"
    clips = json.loads(row.read_text())["clips"]
    assert quiet["all"]["loudest_db"] == max(clip["loudest_db"] for clip in clips)
    first = quiet_clip(0, pipeline.family.views)
    features = pipeline.encode(first.frames, first.texts.caption, first.texts.cot)
    _, latents = pipeline.sample(features, CLIP_S, thinksound.Options(1, 4.0, first.seed))
    assert clips[0]["peak_db"] == pytest.approx(peak_dbfs(pipeline.decode_audio(latents).numpy()), abs=0.1)
    table = (folder / "table.md").read_text()
    assert "## Quiet videos" in table and "| shaking camera | 1 |" in table
    assert results(folder)["splits"] == results(finished)["splits"]
    before = row.stat().st_mtime_ns
    evaluate_made(pipeline, judges, folder, options)
    assert row.stat().st_mtime_ns == before


def test_another_setting_asks_for_another_folder(pipeline, judges, finished):
    with pytest.raises(InputError, match=r"other settings \(steps: 1, now 2\); choose another folder"):
        evaluate_made(pipeline, judges, finished, replace(small("truth"), steps=2))


def test_a_folder_of_something_else_is_left_alone(pipeline, judges, tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(InputError, match="not results of an evaluation"):
        evaluate_made(pipeline, judges, tmp_path, small("truth"))
    assert (tmp_path / "results.json").read_text() == "[]"


def test_the_best_and_the_worst_are_written_for_ears_and_eyes(pipeline, judges, finished, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "examples"
    shutil.copytree(finished, folder)
    evaluate_made(pipeline, judges, folder, small("generated", examples=1))
    names = sorted(path.name for path in (folder / "examples").iterdir())
    assert len(names) == 6
    assert sum(name.endswith(".png") for name in names) == 2
    assert any("-good-" in name for name in names) and any("-bad-" in name for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count 0: give 2 to 500000"),
        ({"count": 10**7}, "count 10000000: give 2 to"),
        ({"steps": 0}, "steps 0: give 1 to 100"),
        ({"batch": 0}, "batch 0: give 1 to"),
        ({"quiet_count": 0}, "quiet_count 0: give 1 to"),
        ({"examples": -1}, "examples -1: give 0 to"),
        ({"cfg_scale": 0.5}, "cfg_scale 0.5 is out of range; give a number from 1 to 20"),
        ({"splits": ("easy",)}, "splits easy: give standard or hard or quiet"),
        ({"rows": ("truth", "tuth")}, "row 'tuth' is not known; give some of truth, vae, generated"),
        ({"rows": ("truth",), "examples": 1}, "examples are of the row 'generated'"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_in_words(changes, message):
    with pytest.raises(InputError, match=message):
        EvaluationOptions(**changes)


def command(*arguments):
    return [
        sys.executable,
        "-m",
        "thinksound",
        "evaluate",
        "made",
        "--split",
        "standard",
        "--count",
        "2",
        *arguments,
    ]


def test_the_command_measures_and_goes_on_after_being_killed(tmp_path):
    """Runs two processes: the first is killed in the middle of its work, the second finishes it."""
    options = ["--steps", "1", "-o", str(tmp_path / "out")]
    first = subprocess.Popen(command(*options), stderr=subprocess.PIPE, text=True)  # all rows: half a minute
    row = tmp_path / "out" / "rows" / "standard-truth.json"
    deadline = time.monotonic() + 120
    while not row.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 130, errors
    assert "Traceback" not in errors
    rows = ["--rows", "truth", "vae", "generated"]
    done = subprocess.run(command(*options, *rows, "-q"), capture_output=True, text=True, check=True)
    assert "| generated |" in done.stdout
    assert done.stdout == (tmp_path / "out" / "table.md").read_text()
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "error: --count 0: give 2"),
        (["--cfg-scale", "50"], "error: --cfg-scale 50 is out of range; give a number from 1 to 20"),
        (["--rows", "nonsense"], "row 'nonsense' is not known"),
    ],
    ids=str,
)
def test_bad_arguments_are_told_before_any_network_is_loaded(capsys, tmp_path, arguments, message):
    status = main(["evaluate", "made", "-o", str(tmp_path / "out"), *arguments])
    assert status == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "out").write_text("mine")
    status = main(["evaluate", "made", "--count", "2", "--rows", "truth", "-q", "-o", str(tmp_path / "out")])
    assert status == 1
    assert "cannot be made a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_missing_judges_are_told_with_what_to_do(capsys, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(JUDGES, weights / FOLDER)
    (weights / FOLDER / "onsets.safetensors").unlink()
    status = main(["evaluate", "made", "--weights", str(weights), "-o", str(tmp_path / "out")])
    assert status == 1
    errors = capsys.readouterr().err
    assert "onsets.safetensors: missing" in errors
    assert "thinksound evaluate judges" in errors
    assert not Path(tmp_path / "out").exists()
