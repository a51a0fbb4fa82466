"""Noise, schedule, guidance and solver: against the reference and by known answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.reference import (
    FEATURES,
    RELATIVE_L2,
    SMALL_MMDIT,
    SMALL_VAE,
    assert_close,
    four,
    golden,
    golden_inputs,
    seeded,
)
from torch import Tensor

from thinksound.families.find import family_of
from thinksound.families.flow import FlowFamily
from thinksound.models.mmdit import MMDiT
from thinksound.models.oobleck import AudioVAE, decoder_context
from thinksound.presets import LIGHT
from thinksound.sampling.guidance import guided_velocity
from thinksound.sampling.noise import draw_noise
from thinksound.sampling.solvers import euler, flow_times


@pytest.fixture(scope="module")
def mmdit():
    return seeded(MMDiT(SMALL_MMDIT), "model.model.")


def sampled(network: MMDiT, given: Sequence[Tensor], noise: Tensor, steps: int, scale: float) -> Tensor:
    """Latents as the family makes them, of any size of transformer."""
    family = family_of(LIGHT)
    assert isinstance(family, FlowFamily)
    return family.follow(network, given, noise, steps, scale, lambda step: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "scale"),
    [("sampler_tiny_9s_24steps_cfg5", 24, 5.0), ("sampler_tiny_9s_10steps_cfg1", 10, 1.0)],
)
def test_whole_sampling_and_decoding(mmdit, name, steps, scale):
    tensors, metadata = golden(name)
    inputs = golden_inputs(metadata)
    features = four(inputs[key] for key in FEATURES)
    times = flow_times(steps)
    assert torch.equal(times, tensors["mid.t"])
    states: dict[str, list[int]] = {}
    velocity = guided_velocity(mmdit, features, 194, scale)
    partial = inputs["noise"]
    for key in sorted((k for k in tensors if k.startswith("mid.x")), key=lambda k: int(k[5:])):
        done = int(key[5:])
        partial = euler(velocity, inputs["noise"], times[: done + 1], states.setdefault(key, []).append)
        assert states[key] == list(range(1, done + 1))
        assert_close(partial, tensors[key])
    latents = sampled(mmdit, features, inputs["noise"], steps, scale)
    assert_close(latents, tensors["out.latent"])

    audio = seeded(AudioVAE(SMALL_VAE), "autoencoder.").decode(latents)
    assert_close(audio[..., :4096], tensors["out.float_head"])
    assert_close(audio.abs().max()[None], tensors["out.peak"])
    if "out.int16_head" in tensors:
        from thinksound.media.audio import to_pcm16

        pcm = to_pcm16(audio[0])
        for got, wanted in (
            (pcm[:, :65536], tensors["out.int16_head"][0]),
            (pcm[:, -65536:], tensors["out.int16_tail"][0]),
        ):
            difference = (torch.as_tensor(got).int() - wanted.int()).abs()
            assert difference.max() <= 2
            # An error of this size, in steps, takes as large a share of the samples over a step.
            level = wanted.float().square().mean().sqrt().item()
            assert (difference > 0).float().mean() < RELATIVE_L2 * level


def test_noise_is_that_of_the_global_seed():
    torch.manual_seed(1234)
    assert torch.equal(draw_noise(1234, 64, 194), torch.randn([1, 64, 194]))
    assert not torch.equal(draw_noise(0, 64, 194), draw_noise(1, 64, 194))


def test_drawing_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_noise(7, 64, 10)
    assert torch.equal(before, torch.get_rng_state())


def test_constant_velocity_is_integrated_exactly():
    start, slope = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 2.0)
    for steps in (1, 7, 24):
        end = euler(lambda latents, time: slope, start, flow_times(steps), lambda step: None)
        assert torch.allclose(end, -slope, atol=1e-6)


def test_euler_is_first_order():
    def error(steps: int) -> float:
        # dx/dt = x from t = 1 to 0 has the solution x(0) = x(1) / e.
        end = euler(lambda x, t: x, torch.ones(1, dtype=torch.float64), flow_times(steps), lambda step: None)
        return abs(end.item() - torch.tensor(-1.0).exp().item())

    assert error(40) / error(80) == pytest.approx(2, rel=0.05)


def test_a_batch_of_two_is_two_singles(mmdit):
    _, metadata = golden("dit_tiny_3p2s_cog")
    inputs = golden_inputs(metadata)
    one = four(inputs[key] for key in FEATURES)
    other = four(part.flip(1) for part in one)
    noise = torch.cat([inputs["noise"], inputs["noise"].flip(2)])
    both = four(torch.cat(pair) for pair in zip(one, other, strict=True))
    together = sampled(mmdit, both, noise, 3, 5.0)
    for row, features in enumerate((one, other)):
        alone = sampled(mmdit, features, noise[row : row + 1], 3, 5.0)
        assert_close(together[row : row + 1], alone)


@pytest.mark.slow
def test_decoding_in_windows_is_decoding_at_once():
    vae = seeded(AudioVAE(SMALL_VAE), "autoencoder.")
    latents = draw_noise(5, 64, 70)
    whole = vae.decode(latents)
    for window in (16, 23, 64):
        assert_close(vae.decode(latents, window=window), whole, limit=2e-6)


def test_the_decoder_sees_no_more_than_its_context():
    context = decoder_context(SMALL_VAE)
    vae = seeded(AudioVAE(SMALL_VAE), "autoencoder.")
    latents = draw_noise(5, 64, 41)
    changed = latents.clone()
    changed[..., 20] += 1
    where = (vae.decode(changed) - vae.decode(latents)).abs().amax(dim=(0, 1)).nonzero() // SMALL_VAE.hop
    reach = max(20 - int(where.min()), int(where.max()) - 20)
    assert context - 3 <= reach <= context
