"""Requests to MMAudio from Python, with the small networks that mmaudio-tiny has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from support.images import colours, write_image
from support.reference import assert_close, relative_l2

import thinksound
from thinksound import InputError, MediaError, Options, OutputError
from thinksound.families.mmaudio import NEGATIVE
from thinksound.pipeline import Pipeline
from thinksound.presets import MMAUDIO_TINY

pytestmark = pytest.mark.slow

SHORT, SECOND = "cfr30_0p3s.mp4", "cfr25_1p0s.mp4"
RATE = 16_000


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return thinksound.load("mmaudio-tiny", device="cpu", dtype="float32")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "picture.png")


def test_a_seed_is_its_noise_in_the_originals_order(pipeline: Pipeline) -> None:
    result = pipeline(caption="rain", duration=1.0, seed=42, num_inference_steps=1)
    latents = 32  # ceil(16,000 / 512)
    wanted = torch.randn(1, latents, 8, generator=torch.Generator().manual_seed(42))
    assert torch.equal(result.noise, wanted[0].T)
    assert result.noise.flatten()[0] == pytest.approx(1.9269, abs=1e-4)


def test_equal_requests_give_equal_sound_and_the_seed_and_texts_decide(
    pipeline: Pipeline, clips: Path
) -> None:
    fixed: dict[str, Any] = {"video": clips / SHORT, "caption": "rain", "negative_prompt": "music", "seed": 3}
    first = pipeline(**fixed, num_inference_steps=3)
    again = pipeline(**fixed, num_inference_steps=3)
    assert torch.equal(first.waveform, again.waveform)
    for change in ({"seed": 4}, {"caption": "wind"}, {"negative_prompt": "speech"}, {"negative_prompt": ""}):
        other = pipeline(**(fixed | change), num_inference_steps=3)
        assert relative_l2(other.latents, first.latents) > 1e-3, change
    drawn = {pipeline(caption="rain", duration=0.2, num_inference_steps=1).seed for _ in range(3)}
    assert len(drawn) == 3


def test_with_a_guidance_of_one_the_negative_prompt_has_no_effect(pipeline: Pipeline) -> None:
    fixed: dict[str, Any] = {
        "caption": "rain",
        "duration": 0.5,
        "seed": 3,
        "num_inference_steps": 3,
        "cfg_scale": 1,
    }
    plain, other = (pipeline(**fixed, negative_prompt=text) for text in ("", "music"))
    assert torch.equal(plain.waveform, other.waveform)


def test_the_preset_decides_what_is_left_open(pipeline: Pipeline) -> None:
    result = pipeline(caption="rain", duration=0.2)
    wanted = {"num_inference_steps": "25", "cfg_scale": "4.5", "caption": "rain", "negative_prompt": ""}
    assert wanted.items() <= result.metadata.items()
    assert (result.metadata["preset"], result.preset) == ("mmaudio-tiny", "mmaudio-tiny")
    assert "cot" not in result.metadata


@pytest.mark.parametrize(("duration", "samples"), [(None, 8 * RATE), (0.1, 1600), (1.2345, 19_752)])
def test_a_text_alone(pipeline: Pipeline, tmp_path: Path, duration: float | None, samples: int) -> None:
    result = pipeline(caption="rain", duration=duration, num_inference_steps=1, seed=1)
    assert set(result.features) == {"text_features", NEGATIVE}
    assert (result.video, result.image, dict(result.frames)) == (None, None, {})
    assert result.pcm.shape == (1, samples) and result.pcm.abs().max() > 8000
    assert result.save(tmp_path / "a.flac") == ()
    sound = soundfile.info(tmp_path / "a.flac")
    assert (sound.frames, sound.samplerate, sound.channels, sound.subtype) == (samples, RATE, 1, "PCM_16")
    read, _ = soundfile.read(tmp_path / "a.flac", dtype="int16")
    assert torch.equal(torch.from_numpy(read), result.pcm[0])
    with pytest.raises(OutputError, match=r"no picture that the sound belongs to; .* \.wav or \.flac$"):
        result.save(tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_a_still_image_is_seen_once_and_shown_throughout(
    pipeline: Pipeline, image: Path, tmp_path: Path
) -> None:
    result = pipeline(image=image, caption="rain", duration=1.5, num_inference_steps=2, seed=1)
    shapes = {name: tuple(value.shape) for name, value in result.features.items()}
    assert shapes == {"clip_features": (1, 32), "text_features": (77, 16), NEGATIVE: (77, 16)}
    assert result.image is not None and (result.image == colours()).all()
    assert tuple(result.frames["clip"].shape) == (1, 384, 384, 3)
    assert result.save(tmp_path / "a.mp4") == ()
    with av.open(tmp_path / "a.mp4") as container:
        assert container.duration == 1_500_000
        assert {"seed": "1", "preset": "mmaudio-tiny"}.items() <= dict(container.metadata).items()
    blind = pipeline(caption="rain", duration=1.5, num_inference_steps=2, seed=1)
    assert relative_l2(result.latents, blind.latents) > 1e-3
    # As if every frame of a video without movement showed it.
    frames = {"clip_features": result.features["clip_features"].expand(12, -1)}
    repeated = pipeline.sample({**result.features, **frames}, 1.5, Options(num_inference_steps=2, seed=1))
    assert torch.equal(repeated.latents, result.latents)


def test_of_a_video_whose_pictures_are_masked_the_timing_is_left(pipeline: Pipeline, clips: Path) -> None:
    fixed: dict[str, Any] = {"video": clips / SHORT, "caption": "rain", "seed": 1, "num_inference_steps": 2}
    masked = pipeline(**fixed, mask_away_clip=True)
    assert set(masked.features) == {"sync_features", "text_features", NEGATIVE}
    whole = pipeline(**fixed)
    assert set(whole.features) == {"clip_features", *masked.features}
    assert relative_l2(masked.latents, whole.latents) > 1e-3
    assert torch.equal(masked.features["sync_features"], whole.features["sync_features"])
    assert masked.pcm.shape == whole.pcm.shape


@pytest.mark.parametrize(("reader", "latents"), [("exact", 32), ("mmaudio", 30)])
def test_latents_are_those_of_the_frames_and_the_sound_is_as_long_as_the_video(
    pipeline: Pipeline, clips: Path, reader: str, latents: int
) -> None:
    result = pipeline(clips / SECOND, "rain", reader=reader, seed=1, num_inference_steps=1)
    assert result.latents.shape[1] == latents  # of 1.0 s and 0.96 s
    assert result.pcm.shape[1] == RATE


def test_the_dump_holds_what_was_there(pipeline: Pipeline, image: Path, tmp_path: Path) -> None:
    pipeline(image=image, duration=0.5, num_inference_steps=1).dump(tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {
        *("clip_frames", "clip_features", "text_features", NEGATIVE, "noise", "latents", "waveform")
    }


def test_a_list_gives_what_its_items_give(pipeline: Pipeline, clips: Path) -> None:
    decoded = [pipeline.decode(clips / name) for name in (SHORT, SECOND, SHORT)]
    still = {"clip": decoded[0].frames["clip"][:1]}
    requests: list[Any] = [*decoded, still, {}]
    captions = ["rain", "wind", "", "rain", "a dog"]
    unwanted = ["music", "", "speech", "music", ""]
    together = pipeline.encode(requests, captions, negative_prompt=unwanted)
    durations = [each.duration_s for each in decoded] + [0.5, 1.0]
    options = [Options(num_inference_steps=2, seed=seed) for seed in range(5)]
    samples = pipeline.sample(together, durations, options)
    for index, request in enumerate(requests):
        alone = pipeline.encode(request, captions[index], negative_prompt=unwanted[index])
        assert list(alone) == list(together[index])
        for name, feature in alone.items():
            assert torch.equal(together[index][name], feature), name
        noise, latents = pipeline.sample(alone, durations[index], options[index])
        assert torch.equal(samples[index].noise, noise)
        assert_close(samples[index].latents, latents)
        assert_close(pipeline.decode_audio(samples[index].latents), pipeline.decode_audio(latents))


def test_sound_becomes_latents_that_may_be_drawn(pipeline: Pipeline) -> None:
    model, generator = pipeline.model, torch.Generator().manual_seed(0)
    stereo = torch.rand(2, 2, 5 * 512, generator=generator) - 0.5
    with torch.inference_mode():
        mean, spread = model.encode_sound(stereo)
        alone = [model.encode_sound(one[None].mean(dim=1, keepdim=True)) for one in stereo]
    assert mean.shape == spread.shape == (2, 8, 5)
    assert_close(mean, torch.cat([one for one, _ in alone]))
    assert_close(spread, torch.cat([one for _, one in alone]))
    noise = torch.randn(mean.shape, generator=generator)
    drawn = model.family.draw_latents(mean, spread, noise)
    assert_close(drawn, mean + noise * (spread / 2).exp())  # the spread is a log-variance


def test_half_precision_stays_near(pipeline: Pipeline) -> None:
    half = thinksound.load("mmaudio-tiny", device="cpu", dtype="bfloat16")
    dtypes = {name: str(next(net.parameters()).dtype) for name, net in half.model.networks.items()}
    assert dtypes == {
        **dict.fromkeys(("clip", "synchformer", "dit"), "torch.bfloat16"),
        **dict.fromkeys(("vae", "vocoder"), "torch.float32"),
    }
    fixed: dict[str, Any] = {"caption": "rain", "duration": 1.0, "seed": 1, "num_inference_steps": 4}
    near, exact = half(**fixed), pipeline(**fixed)
    assert torch.equal(near.noise, exact.noise)
    assert relative_l2(near.latents, exact.latents) < 0.1


def test_words_that_are_not_read_are_named(pipeline: Pipeline) -> None:
    notes = pipeline.text_notes("ball " * 200, negative_prompt="music " * 100)
    assert [note.partition(";")[0] for note in notes] == [
        "caption: CLIP reads only the first 75 of 200 words (77 tokens at most)",
        "negative_prompt: CLIP reads only the first 75 of 100 words (77 tokens at most)",
    ]


def test_what_the_family_does_not_take(pipeline: Pipeline, clips: Path, image: Path) -> None:
    for given, words in (
        (
            {"caption": "a", "cot": "b"},
            "cot is not read by mmaudio-tiny; it reads caption and negative_prompt",
        ),
        ({"video": clips / SHORT, "image": image}, "video and image are both given; give one of them"),
        ({"caption": "a", "mask_away_clip": True}, "mask_away_clip is given without a video; leave it out"),
        ({"image": image, "mask_away_clip": True}, "mask_away_clip is given without a video; leave it out"),
        ({"caption": "a", "reader": "torio"}, "reader 'torio' is not known; give exact or mmaudio"),
        ({"caption": "a", "mask_away_clip": 1}, "mask_away_clip 1 is not taken; give True or False"),
        ({"caption": "a", "duration": 200}, "duration 200 is out of range; give a number from 0.1 to 180"),
        ({"image": 5}, "image 5 is not a path; give the path of one image"),
        ({"negative_prompt": 5}, 'negative_prompt 5 is not a text; give a str, or "" for none'),
        ({"negative": "x"}, "negative is not an option; did you mean negative_prompt?"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            pipeline(**given)
    with pytest.raises(MediaError, match="not an image"):
        pipeline(image=clips / SHORT)


def test_what_only_mmaudio_takes_is_refused_by_the_others(clips: Path, image: Path) -> None:
    tiny = thinksound.load("tiny", device="cpu")
    for given, words in (
        ({"caption": "a"}, "video is missing: tiny needs moving pictures; give the path of a video"),
        ({"image": image}, "image is not taken: tiny needs moving pictures"),
        (
            {"video": clips / SHORT, "negative_prompt": "b"},
            "negative_prompt is not read by tiny; it reads caption",
        ),
        (
            {"video": clips / SHORT, "mask_away_clip": True},
            "mask_away_clip is not an option of tiny; leave it out",
        ),
        ({"video": clips / SHORT, "reader": "mmaudio"}, "reader is not an option of tiny; leave it out"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            tiny(**given)


def test_the_tiny_preset_needs_no_file_and_takes_one(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    drawn = thinksound.load("mmaudio-tiny", folder, device="cpu", dtype="float32")
    assert list(folder.rglob("*.safetensors")) == []
    path = folder / "mmaudio-tiny" / "dit.safetensors"
    path.parent.mkdir()
    state = {name: value + 1 for name, value in drawn.model.networks["dit"].state_dict().items()}
    save_file(state, path)
    loaded = thinksound.load("mmaudio-tiny", folder, device="cpu", dtype="float32")
    for name, value in loaded.model.networks["dit"].state_dict().items():
        assert torch.equal(value, state[name])
    assert MMAUDIO_TINY.networks["dit"].key == "mmaudio_tiny_dit"
