"""MMAudio's transformer against outputs of the original implementation, with seeded weights, in float32."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from parity.mmaudio.procedural_mmaudio import fill, flow_inputs
from safetensors import safe_open
from support.paths import PARITY
from support.reference import assert_close, assert_projected, relative_l2
from torch import Tensor

from thinksound.models.mmaudio import (
    LARGE_44K,
    LARGE_44K_V2,
    MEDIUM_44K,
    SMALL_16K,
    SMALL_44K,
    MMAudioConfig,
    MMAudioFlow,
)
from thinksound.sampling.guidance import guided_velocity
from thinksound.sampling.noise import draw_noise
from thinksound.sampling.solvers import Velocity, euler, turned_flow_times

pytestmark = pytest.mark.slow

FOLDER = PARITY / "mmaudio"
PUBLISHED = {
    "small_16k": SMALL_16K,
    "small_44k": SMALL_44K,
    "medium_44k": MEDIUM_44K,
    "large_44k": LARGE_44K,
    "large_44k_v2": LARGE_44K_V2,
}


def tiny(config: MMAudioConfig) -> MMAudioConfig:
    return replace(config, hidden_dim=64, num_heads=4, depth=4, fused_depth=2)


TINY = {"v1_16k": tiny(SMALL_16K), "v1_44k": tiny(LARGE_44K), "v2_44k": tiny(LARGE_44K_V2)}


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(FOLDER / "golden" / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def inputs_of(metadata: dict[str, str], channels: int) -> dict[str, Tensor]:
    """The inputs that a golden file names, noise as ``(1, C, T)``; checked against the sums it holds."""
    lengths = json.loads(metadata["lengths"])
    tokens, negative = int(metadata["tokens"]), int(metadata["negative_tokens"])
    arrays = flow_inputs(
        metadata["tag"], channels, lengths["latent"], lengths["clip"], lengths["sync"], tokens, negative
    )
    for name, (total, magnitude) in json.loads(metadata["input_sums"]).items():
        array = arrays[name].astype("float64")
        assert abs(array.sum() - total) < 1e-3 and abs(abs(array).sum() - magnitude) < 1e-3, name
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return inputs | {"noise": inputs["noise"].transpose(1, 2)}


def seeded(config: MMAudioConfig) -> MMAudioFlow:
    with torch.device("meta"):
        network = MMAudioFlow(config)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(
        {key: torch.from_numpy(fill(key, shape)) for key, shape in shapes.items()}, assign=True
    )
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks() -> dict[str, MMAudioFlow]:
    return {kind: seeded(config) for kind, config in TINY.items()}


def features_of(network: MMAudioFlow, inputs: dict[str, Tensor], mode: str) -> tuple[Tensor, Tensor, Tensor]:
    clip, sync, text = inputs["clip_f"], inputs["sync_f"], inputs["text_f"]
    no_clip, no_sync, _ = network.empty_features(clip.shape[1], sync.shape[1])
    return {
        "video": (clip, sync, text),
        "novideo": (no_clip, no_sync, text),
        "maskclip": (no_clip, sync, text),
        "image": (clip[:, :1].expand_as(clip), no_sync, text),
    }[mode]


def absent(network: MMAudioFlow, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The unconditional half under a negative text."""
    clip, sync, _ = network.empty_features(inputs["clip_f"].shape[1], inputs["sync_f"].shape[1])
    return clip, sync, inputs["negative_f"]


def published(velocity: Velocity) -> Velocity:
    """The velocity in the original's time, from 0 (noise) to 1 (sound)."""
    return lambda latents, time: -velocity(latents, 1 - time)


def check_output(network: MMAudioFlow, name: str, output: str) -> float:
    """Compare one output, such as ``out.video.negative.cfg4.5``, of a golden file with the network's."""
    tensors, metadata = golden(name)
    inputs = inputs_of(metadata, network.config.latent_dim)
    condition, scale = output.removeprefix("out.").split(".cfg")
    mode, _, negative = condition.partition(".")
    velocity = guided_velocity(
        network,
        features_of(network, inputs, mode),
        inputs["noise"].shape[-1],
        float(scale),
        # Without pictures, the goldens always have the negative text.
        absent(network, inputs) if negative or mode != "video" else None,
    )
    got = published(velocity)(inputs["noise"], tensors["in.t"].item()).transpose(1, 2)
    assert_close(got, tensors[output])
    return relative_l2(got, tensors[output])


OUTPUTS = [
    *("out.video.cfg1", "out.video.cfg4.5", "out.video.negative.cfg4.5"),
    *("out.novideo.cfg4.5", "out.maskclip.cfg4.5", "out.image.cfg4.5"),
]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["v1_16k_8s", "v1_44k_8s", "v2_44k_8s", "v1_16k_3p28s", "v2_44k_3p28s"])
def test_velocity(networks, name, output):
    check_output(networks[name.rpartition("_")[0]], f"flow_tiny_{name}", output)


@pytest.mark.parametrize("kind", ["v1_16k", "v2_44k"])
def test_every_block_condition_and_table(networks, kind):
    network = networks[kind]
    tensors, metadata = golden(f"flow_tiny_{kind}_8s")
    inputs = inputs_of(metadata, network.config.latent_dim)
    watched = {
        "audio_input_proj": network.audio_input_proj,
        "t_embed": network.t_embed,
        "global_cond_mlp": network.global_cond_mlp,
        "clip_cond_proj": network.clip_cond_proj,
        "text_cond_proj": network.text_cond_proj,
        "final_layer": network.final_layer,
        **{f"joint_blocks.{place}": block for place, block in enumerate(network.joint_blocks)},
        **{f"fused_blocks.{place}": block for place, block in enumerate(network.fused_blocks)},
    }
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name, module in watched.items()
    ]
    length = inputs["noise"].shape[-1]
    conditions = network.project(*features_of(network, inputs, "video"), length)
    network(inputs["noise"], tensors["in.t"], conditions)
    for hook in hooks:
        hook.remove()

    assert_projected(network, conditions, tensors)
    assert_close(seen.pop("clip_cond_proj"), tensors["mid.cond.clip_f_c"])
    assert_close(seen.pop("text_cond_proj"), tensors["mid.cond.text_f_c"])
    for name, out in seen.items():
        if name.startswith("joint"):
            for stream, value in zip(("latent", "clip", "text"), out, strict=True):
                assert_close(value, tensors[f"mid.{name}.{stream}"])
        else:
            assert_close(out, tensors[f"mid.{name}"])
    assert len(seen) == 8


@pytest.mark.parametrize("name", ["v1_16k_8s", "v1_44k_8s", "v2_44k_8s", "v1_16k_3p28s", "v2_44k_3p28s"])
def test_synchronisation_is_stretched_to_the_published_neighbours(networks, name):
    network = networks[name.rpartition("_")[0]]
    tensors, metadata = golden(f"flow_tiny_{name}")
    inputs = inputs_of(metadata, network.config.latent_dim)
    clip, sync, text = features_of(network, inputs, "video")
    picked = tensors["mid.sync_index"].long()
    stretched = network.project(clip, sync, text, len(picked)).sync
    plain = network.project(clip, sync, text, sync.shape[1]).sync
    assert torch.equal(stretched, plain[:, picked])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_time_and_positions_are_float32_in_every_dtype(networks, dtype):
    network = seeded(TINY["v2_44k"]).to(dtype)
    tensors, metadata = golden("flow_tiny_v2_44k_8s")
    inputs = inputs_of(metadata, network.config.latent_dim)
    assert torch.equal(network.t_embed.frequencies(torch.device("cpu")), tensors["mid.t_freqs"])
    assert_close(network.t_embed.sinusoids(tensors["in.t"]), tensors["mid.t_sinusoid"])
    # In that dtype: 0.9 and more with time rounded to bfloat16, 7e-2 with the neighbours of exact arithmetic.
    velocity = guided_velocity(network, features_of(network, inputs, "video"), 345, 1.0)
    got = published(velocity)(inputs["noise"], tensors["in.t"].item()).transpose(1, 2)
    assert got.dtype == torch.float32
    assert relative_l2(got, tensors["out.video.cfg1"]) < (1e-5 if dtype is torch.float64 else 3e-2)


@pytest.mark.parametrize(
    "name", ["v1_16k_8s_25steps_cfg4p5", "v2_44k_8s_25steps_cfg4p5", "v1_44k_3p28s_10steps_cfg1_text"]
)
def test_whole_sampling(networks, name):
    tensors, metadata = golden(f"sampler_tiny_{name}")
    network = networks[metadata["kind"]]
    inputs = inputs_of(metadata, network.config.latent_dim)
    times = turned_flow_times(int(metadata["steps"]))
    # What the network gets is that of the original to the last bit.
    assert torch.equal((1 - times).float(), tensors["mid.times"])
    velocity = guided_velocity(
        network,
        features_of(network, inputs, metadata["mode"]),
        inputs["noise"].shape[-1],
        float(metadata["cfg"]),
        absent(network, inputs),
    )
    done, latents = 0, inputs["noise"]
    for key in sorted((k for k in tensors if k.startswith("mid.x")), key=lambda k: int(k[5:])):
        following = int(key[5:])
        latents = euler(velocity, latents, times[done : following + 1], lambda step: None)
        assert_close(latents.transpose(1, 2), tensors[key])
        done = following
    latents = euler(velocity, latents, times[done:], lambda step: None)
    assert_close(latents.transpose(1, 2), tensors["out.x1"])
    assert_close(network.unnormalised(latents).transpose(1, 2), tensors["out.latent"])


@pytest.mark.parametrize("kind", ["v1_16k", "v2_44k"])
def test_noise_of_a_seed_is_that_of_the_original(kind):
    tensors, metadata = golden(f"generate_tiny_{kind}_3p28s_seed42")
    length = json.loads(metadata["lengths"])["latent"]
    noise = draw_noise(int(metadata["seed"]), TINY[kind].latent_dim, length, channels_last=True)
    drawn = noise.transpose(1, 2)
    assert drawn.shape == (1, length, TINY[kind].latent_dim)
    assert torch.equal(drawn.flatten()[:256], tensors["in.noise.head"])
    total, magnitude = json.loads(metadata["audio_sums"])["noise"]
    assert drawn.double().sum().item() == pytest.approx(total)
    assert drawn.double().abs().sum().item() == pytest.approx(magnitude)


def test_guidance_of_one_and_less_follows_the_conditions(networks):
    network = networks["v1_16k"]
    _, metadata = golden("flow_tiny_v1_16k_3p28s")
    inputs = inputs_of(metadata, 20)
    given = features_of(network, inputs, "video")
    one, less = (guided_velocity(network, given, 103, scale)(inputs["noise"], 0.5) for scale in (1.0, 0.0))
    assert torch.equal(one, less)


@pytest.mark.parametrize("size", PUBLISHED)
def test_names_shapes_and_dtypes_are_the_published_ones(size):
    manifest = json.loads((FOLDER / "manifest" / f"mmaudio_{size}.pth.json").read_text())
    with torch.device("meta"):
        network = MMAudioFlow(PUBLISHED[size])
    got = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in network.state_dict().items()
    }
    assert got == manifest["tensors"]
    assert sum(value.numel() for value in network.state_dict().values()) == manifest["parameters"]


# Full size. -----------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("size", ["small_16k", "large_44k_v2"])
def test_full_size(size):
    network = seeded(PUBLISHED[size])
    for output in ("out.video.cfg1", "out.video.negative.cfg4.5", "out.novideo.cfg4.5"):
        with torch.inference_mode():
            error = check_output(network, f"flow_full_{size}_8s", output)
        print(f"PARITY MMAudio {size}, {output.removeprefix('out.')}: {error:.1e}")
