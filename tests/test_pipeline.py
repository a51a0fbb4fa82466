"""The Python interface on the tiny networks, and the README's example."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.paths import CLIPS, ROOT

import thinksound
from thinksound.media.decode import decode_video
from thinksound.presets import PRESETS, TINY
from thinksound.rates import audio_sample_count, latent_frame_count
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
        assert torch.equal(getattr(result.features, name), getattr(features, name))
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
    "unknown name": (lambda p: p(VIDEO, sed=3), "did you mean seed[?] taken are caption, cot, options"),
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
    "no video": (lambda p: p(None), "video None is not a path"),
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
    }
    _, latents = pipeline.sample(left_out.features, left_out.video.duration_s, FAST)
    assert torch.equal(latents, given.latents)


def test_an_empty_chain_of_thought_is_the_caption(pipeline, clips):
    given = pipeline(clips / "cfr25_1p0s.mp4", "rain", "rain", FAST)
    left_out = pipeline(clips / "cfr25_1p0s.mp4", " rain ", "", FAST)
    assert torch.equal(given.latents, left_out.latents)


def test_guidance_of_one_is_the_conditional_half(pipeline, clips):
    from thinksound.sampling.guidance import guided_velocity

    result = pipeline(clips / "cfr25_1p0s.mp4", "rain", "", FAST)
    given = result.features.batched()
    noise = result.noise[None]
    with torch.inference_mode():
        at = {
            scale: guided_velocity(pipeline.mmdit, given, noise.shape[-1], scale)(noise, 0.5)
            for scale in (1.0, 2.0, 3.0)
        }
    assert torch.allclose(at[3.0] - at[2.0], at[2.0] - at[1.0], atol=1e-4)


def test_a_seed_is_drawn_where_none_is_given(pipeline, clips):
    seeds = {pipeline(clips / "cfr25_1p0s.mp4", options=Options(1)).seed for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed <= MAX_SEED for seed in seeds)


@pytest.mark.parametrize("name", ["cfr30_0p3s.mp4", "cfr30_3p2s.mp4", "vfr_mp4.mp4", "start1p4_25_1p0s.ts"])
def test_the_sound_is_as_long_as_the_picture_to_the_sample(pipeline, clips, tmp_path, name):
    result = pipeline(clips / name, options=FAST)
    result.save(tmp_path / "out.wav")
    duration = decode_video(clips / name).duration_s
    assert soundfile.info(tmp_path / "out.wav").frames == audio_sample_count(duration, 16_000)
    assert result.latents.shape == (32, latent_frame_count(duration, 16_000, 512))


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
    {"num_inference_steps": None},
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
    networks = {
        "metaclip": pipeline.metaclip.model,
        "t5": pipeline.t5.model,
        "synchformer": pipeline.synchformer,
        "dit": pipeline.mmdit,
        "vae": pipeline.vae.decoder,
    }
    counted = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert counted == TINY.parameters


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_the_tables_of_parameters_of_our_own_networks(preset):
    from thinksound.models.mmdit import MMDiT
    from thinksound.models.spectrogram_vae import build_vae
    from thinksound.models.synchformer import Synchformer

    with torch.device("meta"):
        networks = {
            "dit": MMDiT(preset.mmdit),
            "vae": build_vae(preset.vae).decoder,
            "synchformer": Synchformer(preset.synchformer),
        }
    for name, network in networks.items():
        assert sum(p.numel() for p in network.parameters()) == preset.parameters[name], name


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
