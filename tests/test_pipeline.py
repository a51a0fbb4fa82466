"""The Python interface on the tiny networks, and the README's example."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.decoded import decode_video
from support.paths import CLIPS, ROOT

import thinksound
from thinksound.families.find import family_of
from thinksound.media.decode import DecodedVideo
from thinksound.media.decode import decode_video as decode_views
from thinksound.presets import MMAUDIO, MMAUDIO_TINY, PRESETS, TINY
from thinksound.rates import audio_sample_count
from thinksound.request import MAX_SEED, Options

pytestmark = pytest.mark.slow

FAST = Options(num_inference_steps=2, seed=3)


@pytest.fixture(scope="module")
def pipeline():
    return thinksound.load("tiny", device="cpu")


def test_a_request_equals_its_stages(pipeline, clips, tmp_path):
    result = pipeline(clips / "cfr25_1p0s.mp4", "rain", "rain on a roof", FAST)
    decoded = pipeline.decode(clips / "cfr25_1p0s.mp4")
    features = pipeline.encode(decoded, "rain", "rain on a roof")
    noise, latents = pipeline.sample(features, decoded.duration_s, FAST)
    waveform = pipeline.decode_audio(latents)
    for name in ("clip_features", "sync_features", "text_features", "t5_features"):
        assert torch.equal(result.features[name], features[name])
    assert torch.equal(result.noise, noise)
    assert torch.equal(result.latents, latents)
    assert torch.equal(result.waveform, waveform)
    assert result.pcm.shape == (2, 16_000)
    assert set(result.timings) == {"decode", "encode", "sample", "vae"}
    pipeline.mux(decoded, waveform, tmp_path / "stages.mp4", result.metadata)
    result.save(tmp_path / "result.mp4")
    assert (tmp_path / "stages.mp4").read_bytes() == (tmp_path / "result.mp4").read_bytes()


def test_options_can_be_given_one_by_one(pipeline, clips):
    given = pipeline(clips / "cfr25_1p0s.mp4", num_inference_steps=2, seed=3)
    assert torch.equal(given.latents, pipeline(clips / "cfr25_1p0s.mp4", options=FAST).latents)
    assert pipeline(clips / "cfr25_1p0s.mp4", options=FAST, seed=4).seed == 4


def test_older_names_of_options_go_on_working(pipeline, clips):
    assert Options(guidance_scale=4, duration_s=1, steps=2) == Options(2, cfg_scale=4, duration=1)
    request = {"caption": "rain", "seed": 3}
    given = pipeline(clips / "cfr25_1p0s.mp4", **request, steps=2, guidance_scale=6.0, duration_s=0.5)
    wanted = pipeline(clips / "cfr25_1p0s.mp4", **request, num_inference_steps=2, cfg_scale=6.0, duration=0.5)
    assert torch.equal(given.latents, wanted.latents)
    assert pipeline.decode(clips / "cfr25_1p0s.mp4", duration_s=0.5).duration_s == 0.5
    assert thinksound.load("tiny", devices="cpu", dtype=torch.float32).placement.plan.devices["t5"] == "cpu"


VIDEO = CLIPS / "cfr25_1p0s.mp4"
load: Any = thinksound.load  # called with what its annotations forbid

MISUSE = {
    "unknown name": (
        lambda p: p(VIDEO, sed=3),
        "did you mean seed[?] taken are video, caption, cot, options",
    ),
    "unknown name of load": (lambda p: thinksound.load("tiny", devise="cpu"), "did you mean device[?]"),
    "two names": (
        lambda p: p(VIDEO, steps=2, num_inference_steps=2),
        "given twice, also under its older name",
    ),
    "two names of options": (lambda p: Options(cfg_scale=4, guidance_scale=4), "cfg_scale is given twice"),
    "two names of the device": (
        lambda p: thinksound.load("tiny", device="cpu", devices="cpu"),
        "given twice",
    ),
    "two names of the duration": (lambda p: p.decode(VIDEO, 1.0, duration_s=1.0), "duration is given twice"),
    "array": (lambda p: p(np.zeros((8, 64, 64, 3))), "video of type numpy.ndarray .* give the path of one"),
    "bytes": (lambda p: p(VIDEO.read_bytes()), "video of type bytes is not a path"),
    "list": (lambda p: p([VIDEO, VIDEO]), "video of type list is not a path"),
    "no video": (lambda p: p(None), "video is missing: tiny needs moving pictures; give the path of a video"),
    "dict": (lambda p: p(VIDEO, options={"seed": 3}), "options of type dict .* give thinksound.Options"),
    "dict for a stage": (lambda p: p.sample(None, 1.0, {"seed": 3}), "options of type dict"),
    "flag for progress": (lambda p: p(VIDEO, progress=True), r"called as progress\(stage, done, total\)"),
    "bytes for weights": (lambda p: load("tiny", b"weights"), "weights of type bytes .* a folder"),
    "list of presets": (
        lambda p: load(["tiny"]),
        "give one of thinksound-light, thinksound, tiny",
    ),
    "number of a device": (lambda p: load("tiny", device=0), "give auto, cpu, cuda"),
    "other dtype": (
        lambda p: thinksound.load("tiny", device="cpu", dtype=torch.int8),
        "give one of auto, float",
    ),
    "text for offload": (lambda p: load("tiny", offload="no"), "give True or False"),
}


@pytest.mark.parametrize(("call", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_answered_with_what_is_taken(pipeline, call, message):
    with pytest.raises(thinksound.InputError, match=message):
        call(pipeline)


def test_each_condition_changes_the_sound(pipeline, clips):
    def latents(video="cfr25_1p0s.mp4", caption="rain", cot="rain on a roof", **options):
        return pipeline(clips / video, caption, cot, Options(2, **{"seed": 3, **options})).latents

    reference = latents()
    assert torch.equal(reference, latents())
    for change in (
        {"video": "gray_25_1p0s.mp4"},
        {"caption": "a dog"},
        {"cot": "a dog barks"},
        {"cfg_scale": 5.0},
        {"seed": 4},
    ):
        assert not torch.allclose(reference, latents(**change), atol=1e-3), change


def test_guidance_is_the_presets_where_none_is_given(pipeline, clips):
    left_out = pipeline(clips / "cfr25_1p0s.mp4", "rain", "", FAST)
    given = pipeline(clips / "cfr25_1p0s.mp4", "rain", "", FAST, cfg_scale=4.0)
    assert torch.equal(left_out.latents, given.latents)
    assert left_out.metadata["cfg_scale"] == "4"
    assert {preset.name: preset.guidance_scale for preset in PRESETS.values()} == {
        "thinksound-light": 5.0,
        "thinksound": 5.0,
        "tiny": 4.0,
    } | {preset.name: 4.5 for preset in (*MMAUDIO, MMAUDIO_TINY)}
    _, latents = pipeline.sample(left_out.features, left_out.video.duration_s, FAST)
    assert torch.equal(latents, given.latents)


def test_steps_are_the_presets_where_none_are_given(pipeline, clips):
    left_out = pipeline(clips / "cfr25_1p0s.mp4", seed=3)
    given = pipeline(clips / "cfr25_1p0s.mp4", options=Options(TINY.steps, seed=3))
    assert torch.equal(left_out.latents, given.latents)
    assert left_out.metadata["num_inference_steps"] == str(TINY.steps) == "24"
    assert {preset.family: preset.steps for preset in PRESETS.values()} == {
        "thinksound": 24,
        "tiny": 24,
        "mmaudio": 25,
    }


def test_an_empty_chain_of_thought_is_the_caption(pipeline, clips):
    given = pipeline(clips / "cfr25_1p0s.mp4", "rain", "rain", FAST)
    for empty in ("", " \n"):
        left_out = pipeline(clips / "cfr25_1p0s.mp4", " rain ", empty, FAST)
        assert torch.equal(given.latents, left_out.latents)
        assert left_out.metadata == given.metadata


def test_guidance_of_one_is_the_conditional_half(pipeline, clips):
    from thinksound.sampling.guidance import guided_velocity

    result = pipeline(clips / "cfr25_1p0s.mp4", "rain", "", FAST)
    given = pipeline.model.conditions([result.features], result.video.duration_s)
    noise = result.noise[None]
    with torch.inference_mode():
        at = {
            scale: guided_velocity(pipeline.model.transformer, given, noise.shape[-1], scale)(noise, 0.5)
            for scale in (1.0, 2.0, 3.0)
        }
    assert torch.allclose(at[3.0] - at[2.0], at[2.0] - at[1.0], atol=1e-4)


def test_guidance_extrapolates_on_a_line(pipeline):
    features = pipeline.encode({}, "rain", "rain on a roof")
    one, some, two = (
        pipeline.sample(features, 1.0, Options(1, scale, 7)).latents for scale in (1.0, 1.25, 2.0)
    )
    assert (two - one).abs().max() > 0.01
    assert (some - (one + 0.25 * (two - one))).abs().max() <= 1e-4


def test_a_seed_is_drawn_where_none_is_given(pipeline, clips):
    seeds = {pipeline(clips / "cfr25_1p0s.mp4", options=Options(1)).seed for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed <= MAX_SEED for seed in seeds)


@pytest.mark.parametrize("name", ["cfr30_0p3s.mp4", "cfr30_3p2s.mp4", "vfr_mp4.mp4", "start1p4_25_1p0s.ts"])
def test_the_sound_is_as_long_as_the_picture_to_the_sample(pipeline, clips, tmp_path, name):
    result = pipeline(clips / name, options=FAST)
    result.save(tmp_path / "out.wav")
    duration = decode_video(clips / name).duration_s
    assert soundfile.info(tmp_path / "out.wav").frames == audio_sample_count(duration, 16_000)
    assert result.latents.shape == (32, pipeline.family.sound.latent_length(duration))


def test_two_requests_share_nothing(pipeline, clips):
    first = pipeline(clips / "cfr25_1p0s.mp4", "rain", "", FAST)
    pipeline(clips / "cfr30_3p2s.mp4", "a dog", "", Options(3, 7.0, 9))
    again = pipeline(clips / "cfr25_1p0s.mp4", "rain", "", FAST)
    assert torch.equal(first.waveform, again.waveform)


def test_progress_reaches_the_end_of_every_stage(pipeline, clips):
    seen: dict[str, list[tuple[int, int]]] = {}
    pipeline(
        clips / "cfr25_1p0s.mp4",
        options=FAST,
        progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )
    assert set(seen) == {"decode", "metaclip", "synchformer", "sample"}
    for stage, steps in seen.items():
        assert steps[-1][0] == steps[-1][1], stage
        assert steps == sorted(steps), stage
    assert [done for done, _ in seen["sample"]] == [1, 2]


BAD_OPTIONS = [
    {"num_inference_steps": 0},
    {"num_inference_steps": 101},
    {"num_inference_steps": 2.5},
    {"num_inference_steps": True},
    {"cfg_scale": 0.5},
    {"cfg_scale": float("nan")},
    {"cfg_scale": float("inf")},
    {"seed": -1},
    {"seed": "7"},
    {"seed": 7.5},
    {"seed": float("nan")},
    {"seed": np.True_},
    {"seed": 2**32},
    {"seed": 10**5000},
    {"duration": 0.05},
    {"duration": float("nan")},
    {"duration": 1e9},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=lambda options: f"{next(iter(options))}")
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(thinksound.InputError, match=rf"^{name} .{{1,50}} is .*; give a (whole )?number from"):
        Options(**options)


VIDEOS = ("cfr25_1p0s.mp4", "cfr30_3p2s.mp4", "gray_25_1p0s.mp4")
CAPTIONS = ["rain", "a dog", "rain"]
COTS = ["rain on a roof", "", "it drips"]


@pytest.fixture(scope="module")
def videos(pipeline) -> list[DecodedVideo]:
    return [pipeline.decode(CLIPS / name) for name in VIDEOS]


def test_a_list_is_encoded_as_its_entries_are(pipeline, videos):
    together = pipeline.encode(videos, CAPTIONS, COTS)
    assert len(together) == 3
    for features, *request in zip(together, videos, CAPTIONS, COTS, strict=True):
        alone = pipeline.encode(*request)
        assert list(features) == list(alone)
        for name, feature in alone.items():
            assert torch.equal(features[name], feature), name


def test_a_text_can_be_for_all_and_a_view_may_be_missing(pipeline, videos):
    frames = [videos[0].frames, {"sync": videos[1].frames["sync"]}, {}]
    together = pipeline.encode(frames, "rain", COTS)
    assert [set(features) for features in together] == [
        {"clip_features", "sync_features", "text_features", "t5_features"},
        {"sync_features", "text_features", "t5_features"},
        {"text_features", "t5_features"},
    ]
    for features, each, cot in zip(together, frames, COTS, strict=True):
        alone = pipeline.encode(each, "rain", cot)
        assert all(torch.equal(features[name], alone[name]) for name in features)
    assert pipeline.encode([]) == []


def test_equal_texts_are_encoded_once(pipeline, videos):
    calls: dict[str, int] = {"metaclip": 0, "t5": 0}
    towers = {"metaclip": pipeline.model.metaclip.model.text_model, "t5": pipeline.model.t5.model}

    def count(name: str) -> None:
        calls[name] += 1

    hooks = [tower.register_forward_hook(lambda *_, name=name: count(name)) for name, tower in towers.items()]
    try:
        pipeline.encode(videos, CAPTIONS, COTS)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == {"metaclip": 2, "t5": 3}


def test_progress_of_a_list_counts_all_of_it(pipeline, videos):
    seen: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        seen.setdefault(stage, []).append((done, total))

    features = pipeline.encode(videos, progress=progress)
    pipeline.sample(features, [video.duration_s for video in videos], FAST, progress)
    assert set(seen) == {"metaclip", "synchformer", "sample"}
    for stage, steps in seen.items():
        # Videos differ in length, so that totals may; the share never goes back and ends at one.
        shares = [done / total for done, total in steps]
        assert shares == sorted(shares) and steps[-1][0] == steps[-1][1], stage
    # Two lengths: two groups of two steps each.
    assert seen["sample"] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_list_is_sampled_as_its_entries_are(pipeline, videos):
    features = pipeline.encode(videos, CAPTIONS, COTS)
    features.append({name: feature for name, feature in features[0].items() if name != "sync_features"})
    durations = [*(video.duration_s for video in videos), videos[0].duration_s]
    options = [FAST, FAST, Options(2, seed=5), FAST]
    for each in (options, [*options[:3], Options(3, 6.0, 7)]):
        together = pipeline.sample(features, durations, each)
        for sample, *request in zip(together, features, durations, each, strict=True):
            alone = pipeline.sample(*request)
            assert torch.equal(sample.noise, alone.noise)
            assert sample.latents.shape == alone.latents.shape
            assert (sample.latents - alone.latents).abs().max() <= 1e-5
    # Requests of one length go through the transformer together.
    batches: list[int] = []
    hook = pipeline.model.transformer.register_forward_hook(
        lambda _m, given, _o: batches.append(len(given[0]))
    )
    try:
        pipeline.sample(features, durations, Options(1, 1.0, 3))
    finally:
        hook.remove()
    assert sorted(batches) == [1, 1, 2]


@pytest.mark.parametrize("other", [Options(2, 1.0, 5), Options(3, 4.0, 5)], ids=["guidance", "steps"])
def test_entries_of_a_list_keep_their_own_options(pipeline, videos, other):
    features = pipeline.encode([videos[0]] * 3)
    options = [Options(2, 4.0, 5), other, Options(2, 4.0, 6)]
    alone = [pipeline.sample(*request).latents for request in zip(features, [1.0] * 3, options, strict=True)]
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    for sample, latents in zip(pipeline.sample(features, 1.0, options), alone, strict=True):
        assert (sample.latents - latents).abs().max() <= 1e-5


def test_entries_of_a_list_get_seeds_of_their_own(pipeline, videos):
    features = pipeline.encode([videos[0]] * 2)
    first, second = pipeline.sample(features, 1.0, Options(1))
    assert not torch.equal(first.noise, second.noise)
    first, second = pipeline.sample(features, 1.0, Options(1, seed=4))
    assert torch.equal(first.noise, second.noise)


def test_a_decoded_video_gives_the_same_bytes_as_its_path(pipeline, videos, tmp_path):
    saved = []
    for name, video in (("path", VIDEO), ("decoded", videos[0])):
        result = pipeline(video, "rain", "", FAST)
        result.save(tmp_path / f"{name}.mp4")
        result.dump(tmp_path / f"{name}.safetensors")
        saved.append([(tmp_path / f"{name}{suffix}").read_bytes() for suffix in (".mp4", ".safetensors")])
    assert saved[0] == saved[1]


@pytest.mark.parametrize(
    "views",
    [
        lambda views: views[:1],
        lambda views: views[::-1],
        lambda views: (views[0], replace(views[1], name="other")),
        lambda views: (
            replace(views[0], pixels=lambda rgb: views[0].pixels(rgb)[:32, :32], size=32),
            views[1],
        ),
        lambda views: (views[0], replace(views[1], pick="next")),
    ],
    ids=["one", "turned", "names", "size", "pick"],
)
def test_a_video_decoded_for_other_networks_is_refused(pipeline, views):
    decoded = decode_views(VIDEO, views(pipeline.family.views))
    for call in (lambda: pipeline(decoded, options=FAST), lambda: pipeline.encode(decoded)):
        with pytest.raises(
            thinksound.InputError, match=r"decoded video .* of tiny; decode it with this pipeline"
        ):
            call()


def test_a_duration_beside_a_decoded_video_is_refused(pipeline, videos):
    with pytest.raises(
        thinksound.InputError, match="duration is given with a decoded video; give it to decode"
    ):
        pipeline(videos[0], options=FAST, duration=0.5)


def test_a_text_that_the_family_does_not_read_is_refused(pipeline, videos):
    calls = {
        "call": lambda: pipeline(VIDEO, negative_prompt="music"),
        "encode": lambda: pipeline.encode(videos[0], negative_prompt="music"),
        "notes": lambda: pipeline.text_notes(negative_prompt="music"),
    }
    for call in calls.values():
        with pytest.raises(
            thinksound.InputError, match="negative_prompt is not read by tiny; it reads caption and cot"
        ):
            call()
    assert pipeline(VIDEO, options=FAST, negative_prompt=" ").seed == 3  # none is none


LISTS = {
    "too few captions": (
        lambda p, v, f: p.encode(v, ["rain"]),
        "caption: 1 for 3 requests; give one for each, or one for all",
    ),
    "a number among captions": (lambda p, v, f: p.encode(v, ["rain", 7, "rain"]), "caption 7 is not a text"),
    "a path": (lambda p, v, f: p.encode(VIDEO), "decoded of type pathlib.* give what decode gave"),
    "a path as text": (lambda p, v, f: p.encode(str(VIDEO)), "decoded '.*' is .*; give what decode gave"),
    "a path in a list": (
        lambda p, v, f: p.encode([v[0], VIDEO]),
        "decoded of type pathlib.* give what decode",
    ),
    "a list of frames for one": (lambda p, v, f: p.encode({"clip": v}), "frames of type list"),
    "a view of another name": (
        lambda p, v, f: p.encode({"clips": v[0].frames["clip"]}),
        "frames of 'clips' are not seen by tiny; give clip and sync",
    ),
    "frames of another size": (
        lambda p, v, f: p.encode({"clip": v[0].frames["clip"][:, :100]}),
        r"clip frames of uint8 \(\d+, 100, .* are not taken; give uint8 \(N, ",
    ),
    "frames of another dtype": (
        lambda p, v, f: p.encode({"clip": v[0].frames["clip"].float()}),
        "clip frames of float32 .* are not taken; give uint8",
    ),
    "no frames": (
        lambda p, v, f: p.encode({"sync": v[0].frames["sync"][:0]}),
        r"sync frames of uint8 \(0, .* with N of at least \d",
    ),
    "no features": (lambda p, v, f: p.sample(None, 1.0), "features None .* give what encode gave"),
    "a number among features": (lambda p, v, f: p.sample([f, 3], 1.0), "features 3 .* give what encode gave"),
    "too few durations": (
        lambda p, v, f: p.sample([f, f], [1.0]),
        "durations: 1 for 2 requests; give one for each",
    ),
    "durations for one": (lambda p, v, f: p.sample(f, [1.0]), "duration_s of type list is not a number"),
    "text for a duration": (lambda p, v, f: p.sample([f, f], "long"), "duration_s 'long' is not a number"),
    "features of another width": (
        lambda p, v, f: p.sample({**f, "clip_features": torch.zeros(8, 3)}, 1.0, FAST),
        r"clip_features \(8, 3\) cannot be taken; tiny takes a tensor such as \(8, 64\) for 1 s",
    ),
    "part of a segment": (
        lambda p, v, f: p.sample({**f, "sync_features": torch.zeros(9, 96)}, 1.0, FAST),
        r"sync_features \(9, 96\) cannot be taken",
    ),
    "too few tokens": (
        lambda p, v, f: p.sample({**f, "t5_features": torch.zeros(5, 128)}, 1.0, FAST),
        r"t5_features \(5, 128\) cannot be taken",
    ),
    "features of another kind": (
        lambda p, v, f: p.sample({**f, "text_features": "rain"}, 1.0, FAST),
        "text_features 'rain' cannot be taken",
    ),
    "a duration of no video": (lambda p, v, f: p.sample(f, float("nan")), "duration_s nan is out of range"),
    "too few options": (
        lambda p, v, f: p.sample([f, f], 1.0, [FAST]),
        "options: 1 for 2 requests; give one for each",
    ),
    "options for one": (lambda p, v, f: p.sample(f, 1.0, [FAST]), "options of type list are not taken"),
    "a dict among options": (lambda p, v, f: p.sample([f], 1.0, [{"seed": 3}]), "options of type dict"),
}


@pytest.mark.parametrize(("call", "message"), LISTS.values(), ids=LISTS)
def test_misuse_of_a_stage_is_answered_with_what_is_taken(pipeline, videos, call, message):
    with pytest.raises(thinksound.InputError, match=message):
        call(pipeline, videos, pipeline.encode({}))


def test_durations_may_be_numbers_of_numpy(pipeline):
    features = pipeline.encode({})
    wanted = pipeline.sample(features, 1.0, FAST)
    for duration in (1, np.float32(1), np.int64(1)):
        assert torch.equal(pipeline.sample(features, duration, FAST).latents, wanted.latents)
    (given,) = pipeline.sample([features], np.float32(1), FAST)
    assert torch.equal(given.latents, wanted.latents)


@pytest.mark.parametrize("text", [None, 7, "\ud800", "a" * 10_001])
@pytest.mark.parametrize("name", ["caption", "cot"])
def test_texts_that_are_none_are_refused(pipeline, clips, name, text):
    with pytest.raises(thinksound.InputError, match=name):
        pipeline(clips / "cfr25_1p0s.mp4", **{name: text})


def test_numbers_of_numpy_are_numbers(pipeline, clips):
    numbers: tuple[Any, ...] = (np.int64(2), np.float32(4), np.uint32(3), np.float64(1.0))
    given = Options(*numbers)
    plain = pipeline(clips / "cfr25_1p0s.mp4", options=FAST)
    assert torch.equal(pipeline(clips / "cfr25_1p0s.mp4", options=given).latents, plain.latents)


@pytest.mark.parametrize("seed", [42.0, np.float16(42), np.float64(42), np.uint8(42), Fraction(42)])
def test_whole_floats_are_whole_numbers(seed):
    steps: Any = 24.0
    options = Options(num_inference_steps=steps, seed=seed)
    assert options == Options(24, seed=42)
    assert [type(value) for value in (options.num_inference_steps, options.seed)] == [int, int]


def test_what_the_encoders_do_not_read_of_the_texts_is_a_note(pipeline, clips):
    assert pipeline(clips / "cfr25_1p0s.mp4", "a ball", "it bounces", FAST).notes == ()
    long, foreign = "ball " * 200 + "of metal", "a ball 雨が屋根に降る"
    notes = pipeline(clips / "cfr25_1p0s.mp4", long, foreign, FAST).notes
    assert notes == pipeline.text_notes(long, foreign)
    assert [note.partition(";")[0] for note in notes] == [
        "caption: MetaCLIP reads only the first 75 of 202 words (77 tokens at most)",
        'cot: T5 cannot read "雨が屋根に降る"',
    ]
    # Without a cot T5 reads the caption.
    assert [note.partition(" reads")[0] for note in pipeline.text_notes(long)] == [
        "caption: MetaCLIP",
        "caption: T5",
    ]


def test_unknown_presets_are_refused():
    with pytest.raises(thinksound.InputError, match="thinksound-light, thinksound, tiny"):
        thinksound.load("huge")


def test_number_formats_that_overflow_say_so(pipeline, clips):
    result = pipeline(clips / "cfr25_1p0s.mp4", options=FAST)
    from thinksound.media.audio import to_pcm16

    with pytest.raises(thinksound.ThinkSoundError, match="float32"):
        to_pcm16(result.waveform * float("inf"))


def test_the_tables_of_parameters_are_those_of_the_networks(pipeline):
    counted = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in pipeline.model.networks.items()
    }
    assert counted == {name: network.parameters for name, network in TINY.networks.items()}
    assert list(counted) == ["metaclip", "t5", "synchformer", "dit", "vae"]
    assert sum(counted.values()) == TINY.parameters


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_the_tables_of_parameters_of_our_own_networks(preset):
    family = family_of(preset)
    with torch.device("meta"):
        networks = {name: family.create(name) for name in ("dit", "vae", "synchformer")}
    for name, built in networks.items():
        counted = sum(p.numel() for p in family.placed(name, built).parameters())
        assert counted == preset.networks[name].parameters, name


def test_bfloat16_stays_close(clips):
    exact = thinksound.load("tiny", device="cpu")(clips / "cfr25_1p0s.mp4", "rain", "", Options(24, 5.0, 3))
    rounded = thinksound.load("tiny", device="cpu", dtype="bfloat16")(
        clips / "cfr25_1p0s.mp4", "rain", "", Options(24, 5.0, 3)
    )
    error = (rounded.latents - exact.latents).norm() / exact.latents.norm()
    assert 0 < error < 0.06


def test_the_python_example_of_the_readme_runs(clips, tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text().split("## Python")[1].split("\n## ")[0]
    example = "\n".join(re.findall(r"```python\n(.*?)```", section, re.S))
    assert "import thinksound" in example and "pipeline.mux" in example
    (tmp_path / "my_clip.mp4").write_bytes((clips / "cfr25_1p0s.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my_clip.mp4",
        "my_clip.wav",
        "my_clip_sound.mp4",
    ]
    assert "16000 7 {'decode'" in capsys.readouterr().out
