"""Sound as frames and back: levels, places, onsets and sides survive; phases need not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from thinksound.models.spectrogram_vae import SpectrogramVAE, SpectrogramVAEConfig
from thinksound.models.spectrum import SIDE_BANDS, analyse, frame_channels, synthesise
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.sound import synthesise as true_sound
from thinksound.training.tiny.spectral_vae import initialise_spectrogram_vae, standardise_spectrogram_vae

SIZE, RATE = 512, 16_000


def tone(hz, level, seconds=1.024):
    time = torch.arange(round(seconds * RATE)) / RATE
    return level * torch.sin(2 * math.pi * hz * time)


def test_the_level_of_a_tone_is_read_where_it_is():
    frames = analyse(torch.stack([tone(1000, 1.0), tone(1000, 1.0)])[None], SIZE)
    assert frames.shape == (1, frame_channels(SIZE), 128)
    middle = frames[0, :-SIDE_BANDS, 64]
    assert int(middle.argmax()) == 1000 * SIZE // RATE
    assert middle.max().item() == pytest.approx(1 + math.log10(0.5) / 2, abs=1e-3)
    assert frames[0, -SIDE_BANDS:].abs().max() < 1e-6


def test_silence_stays_silence():
    frames = analyse(torch.zeros(1, 2, 4096), SIZE)
    assert frames[0, :-SIDE_BANDS].max() == -1 and frames[0, -SIDE_BANDS:].abs().max() == 0
    assert synthesise(frames, SIZE).abs().max() == 0


@pytest.mark.parametrize(("left", "right"), [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.8, 0.6)])
def test_sides_and_powers_come_back(left, right):
    sound = torch.stack([tone(700, left), tone(700, right)])[None] * 0.5
    found = synthesise(analyse(sound, SIZE), SIZE)
    assert found.shape == sound.shape
    inside = slice(2048, -2048)
    wanted_power = sound[..., inside].square().mean(dim=-1)
    assert torch.allclose(found[..., inside].square().mean(dim=-1), wanted_power, atol=0.004)


@pytest.mark.parametrize("seed", range(4))
def test_the_spectra_of_made_sounds_come_back(seed):
    sound = torch.from_numpy(true_sound(make_scene("standard", seed), RATE))[None]
    frames = analyse(sound, SIZE)
    again = analyse(synthesise(frames, SIZE), SIZE)
    error = (again - frames)[:, :-SIDE_BANDS].abs().mean().item()
    other = analyse(torch.from_numpy(true_sound(make_scene("standard", seed + 100), RATE))[None], SIZE)
    assert error < 0.03 < (other - frames)[:, :-SIDE_BANDS].abs().mean().item()


def test_equal_frames_give_equal_sound_alone_or_in_a_batch():
    sounds = np.stack([true_sound(make_scene("hard", seed), RATE) for seed in range(2)])
    frames = analyse(torch.from_numpy(sounds), SIZE)
    both = synthesise(frames, SIZE)
    assert torch.equal(both, synthesise(frames, SIZE))
    assert torch.allclose(both[1], synthesise(frames[1:], SIZE)[0], atol=1e-4)


@torch.no_grad()
def test_a_spectrogram_vae_keeps_lengths_and_answers_for_nearby_latents():
    config = SpectrogramVAEConfig(channels=(4, 8, 8, 8, 8), latent_dim=6)
    vae = SpectrogramVAE(config)
    initialise_spectrogram_vae(vae, 0)
    assert config.hop == 512 and config.places == 8
    sound = torch.randn(1, 2, 512 * 40, generator=torch.Generator().manual_seed(0)) * 0.1
    mean, scale = vae.encode(sound)
    assert mean.shape == scale.shape == (1, 6, 40)
    frames = vae.decode_frames(mean)
    assert frames.shape == (1, frame_channels(512), 160)
    assert vae.decode(mean).shape == sound.shape
    changed = mean.clone()
    changed[..., 20] += 1
    where = (vae.decode_frames(changed) - frames).abs().amax(dim=(0, 1)).nonzero().flatten() // 4
    assert 6 <= int(where.min()) < 20 < int(where.max()) <= 34


@torch.no_grad()
def test_standardised_latents_have_deviation_one_and_the_same_sound():
    vae = SpectrogramVAE(SpectrogramVAEConfig(channels=(4, 8, 8, 8, 8), latent_dim=6))
    initialise_spectrogram_vae(vae, 0)
    sound = torch.randn(4, 2, 512 * 40, generator=torch.Generator().manual_seed(0)) * 0.1
    mean, scale = vae.encode(sound)
    frames = vae.decode_frames(mean)
    deviation = mean.std(dim=(0, 2))
    standardise_spectrogram_vae(vae, deviation)
    again, narrower = vae.encode(sound)
    assert torch.allclose(again.std(dim=(0, 2)), torch.ones(6), atol=1e-4)
    assert torch.allclose(vae.decode_frames(again), frames, atol=1e-4)
    assert torch.allclose(narrower, scale - deviation.log()[None, :, None], atol=1e-4)
