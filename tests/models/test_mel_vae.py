"""The mel front end and MMAudio's VAE against the original's numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity.mmaudio.procedural_mmaudio import audio_input, draw, mel_input
from support.mmaudio_reference import (
    check_sums,
    filled,
    manifest,
    mmaudio_golden,
    on_meta,
    published_on_meta,
    seeded_tensors,
    shapes_of,
)
from support.reference import assert_close, assert_matches
from torch import Tensor

from thinksound.errors import InputError
from thinksound.models.mel import FLOOR, MEL_16K, MEL_44K, log_mel, mel_filters
from thinksound.models.mel_vae import (
    LOG_VARIANCE_LIMITS,
    MEL_VAE_16K,
    MEL_VAE_44K,
    MelVAE,
    MelVAEConfig,
    network_tensors,
)

pytestmark = pytest.mark.slow

RATES = {"16k": (MEL_16K, MEL_VAE_16K, "v1-16.pth"), "44k": (MEL_44K, MEL_VAE_44K, "v1-44.pth")}
SMALL = MelVAEConfig(mel_bands=5, latent_dim=3, channels=8)


def seeded_vae(config: MelVAEConfig) -> MelVAE:
    network = on_meta(lambda: MelVAE(config))
    return filled(network, network_tensors(seeded_tensors(shapes_of(network.state_dict()))))


@pytest.mark.parametrize("rate", RATES)
def test_mel(rate):
    config = RATES[rate][0]
    tensors, metadata = mmaudio_golden("mel")
    audio = torch.from_numpy(audio_input(metadata["tag"] + rate, int(metadata["samples"])))
    assert_close(log_mel(audio[:, None], config), tensors[f"out.mel.{rate}"])


@pytest.mark.parametrize("rate", RATES)
def test_mel_filters(rate):
    config = RATES[rate][0]
    tensors, _ = mmaudio_golden("mel")
    filters = mel_filters(config)
    assert_close(filters.sum(dim=1), tensors[f"mid.basis_rowsum.{rate}"])
    rows = [0, 7, config.bands // 2, config.bands - 1]
    assert_close(filters[rows], tensors[f"mid.basis_row.{rate}"])


@pytest.mark.parametrize("samples", [385, 1023, 1024, 5000])
def test_mel_has_one_frame_per_whole_hop(samples):
    assert log_mel(torch.zeros(2, 1, samples), MEL_16K).shape == (2, 80, samples // 256)


def test_mel_of_silence_is_low_and_of_clipped_sound_that_of_the_clipped():
    silence = log_mel(torch.zeros(1, 1, 4096), MEL_44K)
    assert torch.allclose(silence.min(), torch.tensor(FLOOR).log()) and silence.max() < -9
    loud = torch.full((1, 1, 4096), 3.0)
    loud[..., ::2] *= -1
    assert torch.equal(log_mel(loud, MEL_44K), log_mel(loud.sign(), MEL_44K))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hop": 255}, "even number"), ({"highest_hz": 9000.0}, "above half"), ({"bands": 0}, "at least 1")],
)
def test_impossible_mel_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(MEL_16K, **change)


@pytest.mark.parametrize("rate", RATES)
def test_vae_has_the_tensors_of_the_published_file(rate):
    _, config, file = RATES[rate]
    published = published_on_meta(file)
    network = on_meta(lambda: MelVAE(config))
    assert shapes_of(network_tensors(published)) == shapes_of(network.state_dict())
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert len(published) == 57


def check_vae(network: MelVAE, name: str) -> dict[str, float]:
    tensors, metadata = mmaudio_golden(name)
    config, tag = network.config, metadata["tag"]
    mel = torch.from_numpy(mel_input(tag, config.mel_bands, int(metadata["mel_frames"])))
    shape = (1, config.latent_dim, int(metadata["latent_frames"]))
    latents = torch.from_numpy(draw(f"input.{tag}.latent", shape))
    check_sums({"mel": mel, "latent": latents}, metadata)
    with torch.inference_mode():
        mean, log_variance = network.encode(mel)
        drawn, _ = network.sample(mean, log_variance, torch.ones_like(mean))
        found = {
            "out.mean": mean,
            "out.logvar": log_variance,
            "out.std": drawn - mean,
            "out.mel": network.decode(latents),
            "out.mel.raw": network.decoder(latents),
        }
    return assert_matches(found, tensors)


@pytest.mark.parametrize("rate", RATES)
def test_small_vae(rate):
    check_vae(seeded_vae(replace(RATES[rate][1], channels=32)), f"vae_tiny_{rate}")


@pytest.mark.parity
@pytest.mark.parametrize("rate", RATES)
def test_full_size_mel_vae(rate):
    _, config, file = RATES[rate]
    network = filled(on_meta(lambda: MelVAE(config)), network_tensors(seeded_tensors(manifest(file))))
    for key, error in check_vae(network, f"vae_full_{rate}").items():
        print(f"PARITY mel VAE, {rate}, {key}: {error:.1e}")


@pytest.mark.parametrize("frames", [2, 7, 10])
def test_a_batch_is_its_items_and_an_odd_frame_is_left_out(frames):
    network = seeded_vae(SMALL)
    mel = torch.randn(2, 5, frames, generator=torch.Generator().manual_seed(0))
    encoded = torch.cat(network.encode(mel), dim=1)
    assert encoded.shape == (2, 6, frames // 2)
    assert_close(encoded, torch.cat([torch.cat(network.encode(one[None]), dim=1) for one in mel]))
    latents = encoded[:, :3]
    decoded = network.decode(latents)
    assert decoded.shape == (2, 5, frames // 2 * 2)
    assert_close(decoded, torch.cat([network.decode(one[None]) for one in latents]))


def test_each_convolution_keeps_the_size_of_normal_values():
    network = seeded_vae(replace(SMALL, channels=64))
    weights = {name: value for name, value in network.state_dict().items() if name.endswith(".weight")}
    assert len(weights) == 53
    for weight in weights.values():
        assert_close(weight.square().sum(dim=(1, 2)), torch.ones(len(weight)), 2e-3)


def test_the_size_of_stored_weights_has_no_effect():
    published = seeded_tensors(shapes_of(on_meta(lambda: MelVAE(SMALL)).state_dict()))
    tripled = {name: published[name] * (3 if name.endswith(".weight") else 1) for name in published}
    folded, again = network_tensors(published), network_tensors(tripled)
    for name in folded:
        assert_close(folded[name], again[name], 1e-3)


def test_log_variance_is_limited():
    network = seeded_vae(SMALL)
    network.encoder.learnable_gain.fill_(1e4)
    _, log_variance = network.encode(torch.randn(1, 5, 40, generator=torch.Generator().manual_seed(0)))
    assert (log_variance.min().item(), log_variance.max().item()) == LOG_VARIANCE_LIMITS


def test_divergence_of_a_standard_normal_is_zero():
    zeros: Tensor = torch.zeros(1, 3, 4)
    latents, divergence = MelVAE.sample(zeros, zeros, zeros + 2)
    assert torch.equal(latents, zeros + 2) and divergence == 0
    assert MelVAE.sample(zeros + 1, zeros, zeros)[1] == 3  # mean squared, summed over channels


def test_impossible_vae_settings_are_refused():
    with pytest.raises(InputError, match="latent_dim 0"):
        replace(MEL_VAE_16K, latent_dim=0)
