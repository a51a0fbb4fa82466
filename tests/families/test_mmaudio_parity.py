"""MMAudio from features to sound against the original's outputs, with weights read from published files."""

from __future__ import annotations

import json
from typing import cast

import pytest
import torch
from parity.mmaudio.procedural_mmaudio import flow_inputs
from support.mmaudio_reference import check_sums, mmaudio_golden
from support.published_mmaudio import golden_family, load_pipeline, write_published
from support.reference import assert_close
from torch import Tensor

from thinksound.families.mmaudio import NEGATIVE, MMAudioModel
from thinksound.pipeline import Pipeline
from thinksound.request import Options
from thinksound.sampling.guidance import guided_velocity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    """By kind; loaded from files of the published format."""
    loaded = {}
    for kind in ("v1_16k", "v1_44k", "v2_44k"):
        family = golden_family(kind)
        loaded[kind] = load_pipeline(write_published(tmp_path_factory.mktemp(kind), family), family)
    return loaded


def inputs_of(pipeline: Pipeline, metadata: dict[str, str]) -> dict[str, Tensor]:
    """What a golden file was made with: noise ``(1, T, C)``, features ``(1, N, D)``."""
    lengths = json.loads(metadata["lengths"])
    arrays = flow_inputs(
        metadata["tag"],
        pipeline.family.sound.latent_dim,
        lengths["latent"],
        lengths["clip"],
        lengths["sync"],
        int(metadata.get("tokens", 14)),
        int(metadata.get("negative_tokens", 4)),
    )
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if "input_sums" in metadata:
        check_sums(inputs, metadata)
    return inputs


def features_of(inputs: dict[str, Tensor], mode: str, negative: bool) -> dict[str, Tensor]:
    """The features that encoders would give of a request: what is absent is not there."""
    features = {"text_features": inputs["text_f"][0]}
    if mode == "video":
        features["clip_features"] = inputs["clip_f"][0]
    if mode == "image":
        features["clip_features"] = inputs["clip_f"][0, :1]
    if mode in ("video", "maskclip"):
        features["sync_features"] = inputs["sync_f"][0]
    if negative:
        features[NEGATIVE] = inputs["negative_f"][0]
    return features


def check_sound(pipeline: Pipeline, latents: Tensor, tensors: dict[str, Tensor], metadata: dict[str, str]):
    """Head, tail, length and sums of the sound; the sums are of values that mostly cancel each other."""
    audio = pipeline.decode_audio(latents)
    assert audio.shape == (1, int(metadata["samples"]))
    assert_close(audio[None, :, :8192], tensors["out.audio.head"])
    assert_close(audio[None, :, -8192:], tensors["out.audio.tail"])
    total, magnitude = json.loads(metadata["audio_sums"])["audio"]
    assert audio.double().abs().sum().item() == pytest.approx(magnitude, rel=1e-5)
    assert audio.double().sum().item() == pytest.approx(total, abs=1e-5 * magnitude)


@pytest.mark.parametrize("kind", ["v1_16k", "v2_44k"])
def test_a_request_of_the_original_from_its_seed_to_its_sound(pipelines, kind):
    pipeline = pipelines[kind]
    tensors, metadata = mmaudio_golden(f"generate_tiny_{kind}_3p28s_seed42")
    features = features_of(inputs_of(pipeline, metadata), "video", negative=True)
    duration = float(metadata["duration"])
    # Steps and guidance are left to the preset, as the original's scripts have them.
    assert (pipeline.preset.steps, pipeline.preset.guidance_scale) == (25, 4.5)
    noise, latents = pipeline.sample(features, duration, Options(seed=int(metadata["seed"])))
    assert torch.equal(noise.T.flatten()[:256], tensors["in.noise.head"])
    check_sound(pipeline, latents, tensors, metadata)


@pytest.mark.parametrize(
    "name", ["v1_16k_8s_25steps_cfg4p5", "v2_44k_8s_25steps_cfg4p5", "v1_44k_3p28s_10steps_cfg1_text"]
)
def test_sampling_decoding_and_vocoding(pipelines, name):
    tensors, metadata = mmaudio_golden(f"sampler_tiny_{name}")
    pipeline = pipelines[metadata["kind"]]
    inputs = inputs_of(pipeline, metadata)
    steps: list[int] = []
    latents = pipeline.model.sample(
        [features_of(inputs, metadata["mode"], negative=True)],
        float(metadata["duration"]),
        inputs["noise"].transpose(1, 2),
        int(metadata["steps"]),
        float(metadata["cfg"]),
        steps.append,
    )
    assert steps == list(range(1, int(metadata["steps"]) + 1))
    assert_close(latents.transpose(1, 2), tensors["out.latent"])
    with torch.inference_mode():
        assert_close(pipeline.model.decoding[0].decode(latents), tensors["out.mel"])
    check_sound(pipeline, latents[0], tensors, metadata)


@pytest.mark.parametrize(
    ("mode", "negative", "scale"),
    [
        ("video", False, 1.0),
        ("video", False, 4.5),
        ("video", True, 4.5),
        ("novideo", True, 4.5),
        ("maskclip", True, 4.5),
        ("image", True, 4.5),
    ],
)
@pytest.mark.parametrize("name", ["v1_16k_8s", "v1_44k_8s", "v2_44k_8s", "v1_16k_3p28s", "v2_44k_3p28s"])
def test_the_conditions_of_every_kind_of_request(pipelines, name, mode, negative, scale):
    pipeline = pipelines[name.rpartition("_")[0]]
    tensors, metadata = mmaudio_golden(f"flow_tiny_{name}")
    inputs = inputs_of(pipeline, metadata)
    model = cast(MMAudioModel, pipeline.model)
    features = [features_of(inputs, mode, negative)]
    given = model.conditions(features, float(metadata["duration"]))
    absent = model.unconditional(features, given)
    noise = inputs["noise"].transpose(1, 2)
    with torch.inference_mode():
        velocity = guided_velocity(model.transformer, given, noise.shape[-1], scale, absent)
        # The original's time runs the other way.
        got = -velocity(noise, 1 - tensors["in.t"].item()).transpose(1, 2)
    words = ".negative" if negative and mode == "video" else ""
    assert_close(got, tensors[f"out.{mode}{words}.cfg{scale:g}"])


def test_a_batch_of_requests_of_every_kind_is_its_single_ones(pipelines):
    pipeline = pipelines["v1_16k"]
    _, metadata = mmaudio_golden("flow_tiny_v1_16k_3p28s")
    inputs = inputs_of(pipeline, metadata)
    modes = ("video", "novideo", "maskclip", "image", "video", "image")
    features = [features_of(inputs, mode, negative=True) for mode in modes]
    options = [Options(num_inference_steps=2, seed=seed) for seed in range(len(modes))]
    together = pipeline.sample(features, 3.28, options)
    for each, option, sample in zip(features, options, together, strict=True):
        alone = pipeline.sample(each, 3.28, option)
        assert torch.equal(sample.noise, alone.noise)
        assert_close(sample.latents, alone.latents)
