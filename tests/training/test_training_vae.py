"""Training of the VAE: losses fall and stay finite, latents are standardised, sounds come from a folder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from thinksound.data.sounds import FolderSounds, draw_excerpt
from thinksound.errors import InputError
from thinksound.models.oobleck import AudioVAE, OobleckConfig
from thinksound.models.spectrogram_vae import SpectrogramVAE, SpectrogramVAEConfig
from thinksound.training.loop import Trainer, Update, step_generator
from thinksound.training.options import LoopOptions
from thinksound.training.spectral import (
    Discriminator,
    Verdicts,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    spectral_loss,
)
from thinksound.training.tiny.spectral_vae import (
    SpectralVAELearner,
    SpectralVAEOptions,
    initialise_spectrogram_vae,
    mel_slope,
)
from thinksound.training.vae import VAELearner, VAEOptions, initialise_vae, standardise

pytestmark = pytest.mark.slow

SMALL = OobleckConfig(channels=8, channel_multiples=(1, 2), strides=(4, 4), latent_dim=6, sample_rate=16_000)
OPTIONS = VAEOptions(
    batch=4,
    excerpt=64,
    learning_rate=2e-3,
    discriminator_rate=2e-3,
    spectral_sizes=(256, 64),
    discriminator_sizes=(128, 64),
    discriminator_channels=4,
    adversarial_from=10_000,
)


class Tones:
    """Gives the same chords each time, and holds out others."""

    sample_rate = 16_000

    def batch(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        return self._chords(range(count), samples)

    def held_out(self, samples: int) -> Tensor:
        return self._chords(range(10, 13), samples)

    def _chords(self, numbers: range, samples: int) -> Tensor:
        time = torch.arange(samples) / self.sample_rate
        left = torch.stack([torch.sin(2 * torch.pi * (300 + 90 * n) * time) for n in numbers])
        right = torch.stack([torch.sin(6000 * time * (1 + n)) for n in numbers])
        return torch.stack([left, right], dim=1) * torch.linspace(0.5, 0.05, samples)


def learner(**changes: object) -> VAELearner:
    options = VAEOptions(**{**vars(OPTIONS), **changes})
    initialise_vae(vae := AudioVAE(SMALL), 0)
    return VAELearner(vae, options, Tones())


def test_the_loss_of_one_batch_goes_down():
    training = learner()
    rows = [training.train_step(step, step_generator(0, step), Update(1.0)) for step in range(40)]
    assert rows[-1]["spectral"] < 0.7 * rows[0]["spectral"]
    assert all(np.isfinite(row["kl"]) and row["kl"] >= 0 for row in rows)


def test_the_discriminator_joins_at_its_step_and_everything_stays_finite():
    training = learner(adversarial_from=3)
    before = [parameter.detach().clone() for parameter in training.discriminator.parameters()]
    rows = []
    for step in range(16):
        rows.append(training.train_step(step, step_generator(0, step), Update(1.0)))
        if step == 2:
            untouched = zip(before, training.discriminator.parameters(), strict=True)
            assert all(torch.equal(there, here) for there, here in untouched)
    adversarial = {"discriminator", "adversarial", "features"}
    assert not adversarial & set(rows[2])
    assert adversarial <= set(rows[3])
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["discriminator"] < rows[3]["discriminator"]
    assert all(parameter.requires_grad for parameter in training.discriminator.parameters())
    assert training.validate(training.networks)["spectral"] > 0


class Recorder(Update):
    """An update that records its losses."""

    def __init__(self) -> None:
        super().__init__(clip_norm=1.0)
        self.losses: list[float] = []

    def __call__(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
        self.losses.append(loss.item())
        return super().__call__(loss, optimizer)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    weights = {"spectral_weight": 0.7, "kl_weight": 0.3, "adversarial_weight": 1.1, "feature_weight": 1.7}
    row = learner(adversarial_from=0, **weights).train_step(0, step_generator(0, 0), recorder := Recorder())
    judging, whole = recorder.losses
    assert judging == pytest.approx(row["discriminator"])
    parts = (row[name] for name in ("spectral", "kl", "adversarial", "features"))
    wanted = sum(weight * part for weight, part in zip(weights.values(), parts, strict=True))
    assert whole == pytest.approx(wanted, rel=1e-5)
    assert min(abs(row[name]) for name in ("spectral", "kl", "adversarial", "features")) > 1e-4


def test_the_decoder_learns_from_latents_with_the_noise_of_their_posterior():
    first, same, other = (
        learner().train_step(0, step_generator(seed, 0), Update(1.0))["spectral"] for seed in (0, 0, 1)
    )
    assert first == same != other  # the sounds are the same each time


@pytest.mark.parametrize("part", ["spectral_weight", "kl_weight", "adversarial_weight", "feature_weight"])
def test_every_part_of_the_loss_alone_trains_the_vae(part):
    none = {"spectral_weight": 0.0, "kl_weight": 0.0, "adversarial_weight": 0.0, "feature_weight": 0.0}
    training = learner(adversarial_from=0, **{**none, part: 1.0})
    assert training.train_step(0, step_generator(0, 0), Update(1.0))["gradient"] > 1e-4


def test_each_network_has_its_own_learning_rate():
    """AdamW's first step has the size of the learning rate where the gradient is not 0."""
    training = learner(adversarial_from=0, learning_rate=1e-3, discriminator_rate=4e-3)
    before = {
        name: [parameter.detach().clone() for parameter in network.parameters()]
        for name, network in training.networks.items()
    }
    training.train_step(0, step_generator(0, 0), Update(1.0))
    for name, rate in (("vae", 1e-3), ("discriminator", 4e-3)):
        after = training.networks[name].parameters()
        change = max((now - then).abs().max().item() for then, now in zip(before[name], after, strict=True))
        assert change == pytest.approx(rate, rel=1e-2), name


def test_the_discriminator_is_taught_that_the_sounds_are_real_and_the_results_are_not():
    # The VAE does not train against the discriminator.
    training = learner(
        adversarial_from=0, adversarial_weight=0.0, feature_weight=0.0, discriminator_rate=1e-2
    )
    for step in range(12):
        training.train_step(step, step_generator(0, step), Update(1.0))
    real = Tones().batch(4, 1024, torch.Generator())
    with torch.no_grad():
        fake = training.vae.decode(training.vae.encode(real)[0])
        above, below = (
            torch.stack([logits.mean() for logits, _ in training.discriminator(sound)]).mean()
            for sound in (real, fake)
        )
    assert above > below + 0.1


def test_validation_is_of_the_network_that_is_given():
    training, other = learner(), AudioVAE(SMALL)
    initialise_vae(other, 1)
    sound = Tones().held_out(64 * SMALL.hop)
    with torch.no_grad():
        wanted = spectral_loss(other.decoder(other.encode(sound)[0]), sound, OPTIONS.spectral_sizes).item()
    assert training.validate({"vae": other})["spectral"] == pytest.approx(wanted, rel=1e-5)
    assert training.validate(training.networks)["spectral"] != pytest.approx(wanted, rel=1e-3)


def test_a_discriminator_learns_to_tell_noise_from_tones():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Discriminator((128, 64), 4)
    optimizer = torch.optim.Adam(judge.parameters(), 5e-3)
    real = Tones().batch(4, 1024, torch.Generator())
    losses = []
    for step in range(25):
        fake = 0.2 * torch.randn(real.shape, generator=torch.Generator().manual_seed(step))
        loss = discriminator_loss(judge(real), judge(fake))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 1.5  # undecided is 2
    assert losses[-1] < 0.5


def test_the_spectral_loss_is_zero_for_equal_sound_and_blind_to_its_sign():
    sound = Tones().batch(2, 2048, torch.Generator())
    assert spectral_loss(sound, sound, (256, 64)).item() == pytest.approx(0, abs=1e-6)
    assert spectral_loss(-sound, sound, (256, 64)).item() == pytest.approx(0, abs=1e-5)
    softer, changed = sound * 0.5, sound.flip(0)
    assert 0 < spectral_loss(softer, sound, (256, 64)) < spectral_loss(changed, sound, (256, 64))


def test_the_spectral_loss_of_half_the_sound_has_its_closed_form():
    """All magnitudes are halved: log distance ln 2, spectral convergence 1/2."""
    noise = 10 * torch.randn(2, 2, 4096, generator=torch.Generator().manual_seed(0))
    assert spectral_loss(noise / 2, noise, (256, 64)).item() == pytest.approx(np.log(2) + 0.5, rel=1e-3)


def test_the_spectral_loss_hears_channels_that_cancel_each_other():
    """The magnitudes of left and right are equal; those of their sum and difference are not."""
    left = Tones().batch(2, 2048, torch.Generator())[:, 0]
    assert spectral_loss(torch.stack([left, -left], 1), torch.stack([left, left], 1), (256, 64)) > 0.5


def test_the_losses_of_verdicts_have_their_closed_forms():
    def verdict(logit: float, feature: float) -> Verdicts:
        return [(torch.tensor([logit]), [torch.tensor([feature])])]

    real, fake = verdict(0.75, 2.0), verdict(-0.5, 3.0)
    assert discriminator_loss(real, fake).item() == pytest.approx(0.25 + 0.5)
    assert discriminator_loss(verdict(1.5, 0.0), verdict(-1.5, 0.0)).item() == 0  # beyond the margin
    assert adversarial_loss(fake).item() == 0.5
    assert feature_matching_loss(real, fake).item() == pytest.approx(1 / 2)  # relative to the real ones


def test_standardised_latents_have_deviation_one_and_sound_the_same():
    training = learner()
    for step in range(8):
        training.train_step(step, step_generator(0, step), Update(1.0))
    vae: AudioVAE = training.vae
    sound = Tones().held_out(2048)
    with torch.no_grad():
        mean, scale = vae.encode(sound)
        deviation = mean.std(dim=(0, 2))
        assert not torch.allclose(deviation, torch.ones(6), atol=0.05)
        before = vae.decode(mean)
        to_narrow = -5 - scale  # there softplus is nearly the exponential
        spread = vae.sample(mean, scale + to_narrow, torch.ones_like(mean))[0] - mean
        standardise(vae, deviation)
        mean, scale = vae.encode(sound)
        torch.testing.assert_close(mean.std(dim=(0, 2)), torch.ones(6), atol=1e-4, rtol=0)
        torch.testing.assert_close(vae.decode(mean), before, atol=1e-4, rtol=1e-3)
        # The deviation of the posterior shrinks in proportion to the latents.
        narrower = vae.sample(mean, scale + to_narrow, torch.ones_like(mean))[0] - mean
        expected = spread / deviation[:, None]
        torch.testing.assert_close(narrower, expected, atol=2e-4, rtol=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fresh_vae_keeps_the_power_adds_little_noise_and_is_quiet(seed):
    vae = AudioVAE(SMALL)
    initialise_vae(vae, seed)
    noise = torch.randn(4, 2, 1024, generator=torch.Generator().manual_seed(seed))
    latents = torch.randn(4, 6, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        mean, scale = vae.encode(noise)
        sound = vae.decode(latents)
    assert 0.5 < mean.std() < 3
    assert -4 < scale.mean() < -2  # a posterior deviation of softplus(-3), which is 0.05
    assert 0.01 < sound.std() < 0.1


def test_a_run_of_the_vae_resumes_bit_exactly(tmp_path):
    def run(folder: Path, *pieces: int) -> Trainer:
        for steps in pieces:
            options = LoopOptions(steps, warmup=2, save_every=2, validate_every=2)
            trainer = Trainer(learner(adversarial_from=2), options, folder)
            trainer.run()
        return trainer

    whole, pieces = run(tmp_path / "whole", 5), run(tmp_path / "pieces", 3, 5)
    for name, network in whole.learner.networks.items():
        for there, here in zip(
            network.state_dict().values(), pieces.learner.networks[name].state_dict().values(), strict=True
        ):
            assert torch.equal(there, here)


# --- folders of sounds ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Constant sounds with a different value in each file, one of them in a subfolder, and a broken file."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "below").mkdir()
    for number in range(6):
        where = folder / "below" if number == 5 else folder
        samples = np.full((8_000 if number else 2_000, 2), (number + 1) / 10, np.float32)
        soundfile.write(where / f"{number}.wav", samples, 16_000)
    (folder / "broken.wav").write_bytes(b"RIFF of no use")
    (folder / "captions.csv").write_text("file,caption\n")
    return folder


def test_excerpts_come_from_every_file_but_those_held_out(folder, caplog):
    sounds = FolderSounds(folder, 16_000)
    with caplog.at_level(logging.WARNING):
        batch = sounds.batch(60, 4_000, torch.Generator().manual_seed(0))
        again = sounds.batch(60, 4_000, torch.Generator().manual_seed(0))
    assert batch.shape == (60, 2, 4_000)
    assert torch.equal(batch, again)
    assert not torch.equal(batch, sounds.batch(60, 4_000, torch.Generator().manual_seed(1)))
    levels = batch.abs().amax(dim=(1, 2))
    assert levels.min() < 0.2 < 0.45 < levels.max()
    assert len([record for record in caplog.records if "broken.wav" in record.getMessage()]) == 1
    held_out = sounds.held_out(4_000)
    assert held_out.shape == (1, 2, 4_000)
    # The shortest file comes first and is held out: only its sound is 0.1, followed by silence.
    assert held_out[0, 0, 0].item() == pytest.approx(0.1, abs=1e-4)
    assert (held_out[0, :, 2_000:] == 0).all()


def test_an_excerpt_keeps_its_shape_in_level_side_and_sign():
    ramp = torch.stack([torch.linspace(0, 1, 1000), torch.zeros(1000)])
    sound = (ramp * 32767).round().to(torch.int16)
    seen = set()
    for seed in range(20):
        excerpt = draw_excerpt(sound, 1000, torch.Generator().manual_seed(seed))
        loud = int(excerpt.abs().amax(dim=1).argmax())
        level = excerpt[loud, -1].item()
        torch.testing.assert_close(excerpt[loud], ramp[0] * level, atol=1e-4, rtol=1e-3)
        assert 10**-0.6 <= abs(level) <= 1
        seen.add((loud, level > 0))
    assert len(seen) == 4


def test_the_louder_of_two_places_is_preferred():
    sound = torch.zeros(2, 10_000, dtype=torch.int16)
    sound[:, 5_000:] = 10_000
    loud = sum(
        draw_excerpt(sound, 100, torch.Generator().manual_seed(seed)).abs().max().item() > 0.01
        for seed in range(200)
    )
    assert loud == pytest.approx(150, abs=25)  # 3 of 4; without the choice of the louder it would be half


def test_a_small_cache_changes_nothing(folder):
    draw = torch.Generator().manual_seed
    large, small = FolderSounds(folder, 16_000), FolderSounds(folder, 16_000, cache_bytes=40_000)
    for seed in range(3):
        assert torch.equal(large.batch(8, 2_000, draw(seed)), small.batch(8, 2_000, draw(seed)))


def test_folders_that_give_nothing_are_named(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        FolderSounds(tmp_path / "missing", 16_000)
    (tmp_path / "one.wav").write_bytes(b"")
    with pytest.raises(InputError, match="1 files; give a folder with at least two sounds"):
        FolderSounds(tmp_path, 16_000)
    (tmp_path / "two.wav").write_bytes(b"")
    sounds = FolderSounds(tmp_path, 16_000)
    with pytest.raises(InputError, match=r"20 files in a row cannot be read, the last .*two\.wav"):
        sounds.batch(1, 100, torch.Generator())
    with pytest.raises(InputError, match="none of the files that are held out can be read"):
        sounds.held_out(100)


@pytest.mark.parametrize("hearing", [False, True])
def test_the_loss_of_one_batch_goes_down_for_the_vae_on_spectra(hearing):
    vae = SpectrogramVAE(SpectrogramVAEConfig(channels=(8, 16, 16), latent_dim=8, spectrum=128))
    initialise_spectrogram_vae(vae, 0)
    options = SpectralVAEOptions(batch=3, excerpt=16, learning_rate=3e-3, hearing=hearing)
    training = SpectralVAELearner(vae, options, Tones())
    rows = [training.train_step(step, step_generator(0, step), Update(1.0)) for step in range(60)]
    assert rows[-1]["frames"] < 0.3 * rows[0]["frames"]


def test_frequencies_count_as_many_mels_as_they_fill():
    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    slope = mel_slope(16_000, 257)[:, 0].double().numpy()
    assert slope.mean() == pytest.approx(1)
    hertz = np.linspace(0, 8000, 257)
    mels = np.gradient(mel(hertz), hertz)
    assert slope[1:-1] == pytest.approx((mels / mels.mean())[1:-1], rel=5e-3)


@pytest.mark.parametrize("options", [VAEOptions, SpectralVAEOptions])
@pytest.mark.parametrize(
    ("name", "value"),
    [("batch", 0), ("excerpt", 0), ("learning_rate", float("inf")), ("kl_weight", float("nan"))],
)
def test_options_out_of_range_are_refused(options, name, value):
    with pytest.raises(InputError, match=name):
        options(**{name: value})


def test_what_a_run_writes_is_no_sound_to_train_on(tmp_path):
    for name in ("one.wav", "two.wav"):
        (tmp_path / name).write_bytes(b"")
    before = FolderSounds(tmp_path, 16_000, without=tmp_path / "run").identity
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"")
    assert FolderSounds(tmp_path, 16_000, without=tmp_path / "run").identity == before
    assert FolderSounds(tmp_path, 16_000).identity != before
