"""Pretraining of small encoders: their targets are right, and they learn them."""

from __future__ import annotations

import pytest
import torch
from support.networks import load
from support.paths import WEIGHTS
from torch import Tensor

from thinksound.models.motion import MotionConfig, MotionEncoder
from thinksound.training.loop import Update, step_generator, trainable
from thinksound.training.tiny.encoders import (
    BANDS,
    TARGETS_PER_SECOND,
    Films,
    PictureLearner,
    PretrainingOptions,
    SyncLearner,
    TextLearner,
    initialise_motion,
    sound_targets,
    sync_loss,
)

pytestmark = pytest.mark.slow

RATE = 16_000
SMALL = MotionConfig(embed_dim=32, channels=(8, 16), depth=2, pool=14)


def burst(at_s: float, side: int | None = None, seconds: float = 1.0) -> Tensor:
    """Silence with 30 ms of noise, (2, A)."""
    waveform = torch.zeros(2, round(seconds * RATE))
    start = round(at_s * RATE)
    noise = 0.5 * torch.randn(RATE * 30 // 1000, generator=torch.Generator().manual_seed(0))
    waveform[:, start : start + len(noise)] = noise
    if side is not None:
        waveform[1 - side] = 0
    return waveform


@pytest.mark.parametrize("at_s", [0.0, 0.11, 0.45, 0.452, 0.458, 0.9])
def test_flux_lies_where_the_onset_is(at_s):
    targets = sound_targets(burst(at_s), RATE)
    assert targets.shape == (TARGETS_PER_SECOND, BANDS + 2)
    flux = targets[:, -1]
    centre = (flux.argmax().item() + 0.5) / TARGETS_PER_SECOND
    assert abs(centre - at_s) <= 0.02
    far = (torch.arange(TARGETS_PER_SECOND) + 0.5) / TARGETS_PER_SECOND - at_s
    assert flux[far.abs() > 0.07].max() < 0.1 * flux.max()


def test_targets_tell_level_and_side():
    silence, left, right = (
        sound_targets(each, RATE) for each in (torch.zeros(2, RATE), burst(0.5, 0), burst(0.5, 1))
    )
    assert silence[:, :BANDS].abs().max() < 1e-3
    torch.testing.assert_close(silence[:, BANDS], torch.full((50,), 0.5))
    assert left[25, BANDS] < 0.01 and right[25, BANDS] > 0.99
    assert torch.equal(left[:, :BANDS], right[:, :BANDS])
    assert 0.3 < left[25, :BANDS].mean() < 1
    # 20 dB is a quarter of the 80 dB scale.
    softer = sound_targets(burst(0.5, 0) / 10, RATE)
    torch.testing.assert_close(
        left[25, :BANDS] - softer[25, :BANDS], torch.full((BANDS,), 0.25), atol=0.02, rtol=0
    )


def test_flux_counts_more_than_a_band():
    wanted = torch.zeros(1, 4, BANDS + 2)
    band, flux = wanted.clone(), wanted.clone()
    band[..., 0], flux[..., -1] = 1.0, 1.0
    assert sync_loss(flux, wanted) > 20 * sync_loss(band, wanted)


def flashes() -> Films:
    """A white flash at the time and side of its sound, in front of a colour that the caption names."""
    colours = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "grey": (90, 90, 90)}
    small, pictures, targets = [], [], []
    side = SMALL.image_size // SMALL.pool
    for place, colour in enumerate(colours.values()):
        at_s = 0.2 + 0.15 * place
        still = torch.tensor(colour, dtype=torch.uint8).expand(32, side, side, 3).clone()
        half = slice(0, side // 2) if place % 2 else slice(side // 2, side)
        still[round(at_s * 25) : round(at_s * 25) + 2, :, half] = 255
        small.append(still)
        pictures.append(torch.tensor(colour, dtype=torch.uint8).expand(2, 224, 224, 3))
        targets.append(sound_targets(burst(at_s, 0 if place % 2 else 1, seconds=1.28), RATE))
    captions = [f"something {name}" for name in colours]
    return Films(torch.stack(small), torch.stack(pictures), torch.stack(targets), captions)


def test_the_motion_tower_learns_what_the_pictures_tell_of_the_sound():
    synchformer = MotionEncoder(SMALL)
    initialise_motion(synchformer, 0)
    films = flashes()
    learner = SyncLearner(synchformer, PretrainingOptions(batch=8, learning_rate=2e-3), films, films)
    before = learner.validate(learner.networks)
    for step in range(60):
        learner.train_step(step, step_generator(0, step), Update(1.0))
    after = learner.validate(learner.networks)
    assert after["sync"] < 0.5 * before["sync"]
    assert after["flux_correlation"] > 0.8 > before["flux_correlation"]


def test_pictures_find_their_captions():
    metaclip = load(WEIGHTS, "metaclip")
    trainable(metaclip.model)
    films = flashes()
    learner = PictureLearner(metaclip, PretrainingOptions(batch=8, learning_rate=1e-3), films, films)
    before = learner.validate(learner.networks)["contrast"]
    for step in range(30):
        learner.train_step(step, step_generator(0, step), Update(1.0))
    assert learner.validate(learner.networks)["contrast"] < 0.5 * before


def test_the_text_encoder_learns_to_fill_in_words():
    t5 = load(WEIGHTS, "t5")
    trainable(t5.model)

    class Sentences:
        def batch(self, step: int, count: int) -> list[str]:
            return ["a ball of wood bounces on the floor", "rain falls on a roof of metal"] * (count // 2)

    learner = TextLearner(t5, Sentences(), batch=8, learning_rate=2e-3)
    rows = [learner.train_step(step, step_generator(0, step), Update(1.0)) for step in range(30)]
    assert rows[-1]["words"] < 0.5 * rows[0]["words"]
    assert rows[-1]["right"] > rows[0]["right"]
