"""Training of MMAudio's VAE: weights keep their size, losses fall, an export is what was trained."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.networks import load
from torch import Tensor

import thinksound
from thinksound.cli import main
from thinksound.errors import InputError
from thinksound.models.mel import MEL_16K, log_mel
from thinksound.models.mel_vae import MelVAE, MelVAEConfig, network_tensors
from thinksound.presets import MMAUDIO_TINY
from thinksound.training.loop import CHECKPOINT, Trainer, Update, read_checkpoint, step_generator
from thinksound.training.mel_vae import MelVAELearner, MelVAEOptions, initialise_mel_vae, measure_mels
from thinksound.training.options import LoopOptions

pytestmark = pytest.mark.slow

SMALL = MelVAEConfig(mel_bands=80, latent_dim=4, channels=8)
OPTIONS = MelVAEOptions(batch=4, excerpt=8, learning_rate=0.02, discriminator_channels=4)
COMMAND = ("--preset", "mmaudio-tiny", "--device", "cpu")


class Tones:
    """The same chords each time, and others that are held out."""

    sample_rate = 16_000

    def batch(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        return self._chords(range(count), samples)

    def held_out(self, samples: int) -> Tensor:
        return self._chords(range(10, 13), samples)

    def _chords(self, numbers: range, samples: int) -> Tensor:
        time = torch.arange(samples) / self.sample_rate
        left = torch.stack([torch.sin(2 * torch.pi * (300 + 90 * (n % 30)) * time) for n in numbers])
        right = torch.stack([torch.sin(6000 * time * (1 + n % 7)) for n in numbers])
        return torch.stack([left, right], dim=1) * torch.linspace(0.5, 0.05, samples)


def small_vae() -> MelVAE:
    vae = MelVAE(SMALL)
    initialise_mel_vae(vae, 0)
    measure_mels(vae, MEL_16K, Tones(), OPTIONS.excerpt)
    return vae


def learner(**changes: object) -> MelVAELearner:
    return MelVAELearner(small_vae(), MEL_16K, MelVAEOptions(**{**vars(OPTIONS), **changes}), Tones())


def sizes(vae: torch.nn.Module) -> Tensor:
    """Root mean square of each output channel's weights, times the root of what it sums."""
    return torch.cat([w.square().sum(dim=(1, 2)).sqrt().detach() for w in vae.parameters() if w.dim() == 3])


def test_a_new_vae_standardises_with_what_it_measured():
    vae = small_vae()
    mels = log_mel(Tones().batch(256, 8 * 512, torch.Generator()).mean(dim=1, keepdim=True), MEL_16K)
    standard = (mels - vae.data_mean) / vae.data_std
    torch.testing.assert_close(standard.mean(dim=(0, 2)), torch.zeros(80), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std(dim=(0, 2)), torch.ones(80), atol=1e-3, rtol=0)
    torch.testing.assert_close(sizes(vae), torch.ones_like(sizes(vae)))
    with torch.no_grad():
        mean, _ = vae.encode(mels)
    assert 0.3 < mean.std() < 3  # magnitudes are kept


def test_a_band_without_sound_is_not_magnified():
    class Silence(Tones):
        def _chords(self, numbers: range, samples: int) -> Tensor:
            return torch.zeros(len(numbers), 2, samples)

    vae = small_vae()
    measure_mels(vae, MEL_16K, Silence(), OPTIONS.excerpt)
    torch.testing.assert_close(vae.data_std, torch.full_like(vae.data_std, 0.01))


def test_validation_measures_the_networks_that_it_is_given():
    training, other = learner(), small_vae()
    with torch.no_grad():
        other.decoder.conv_out.weight.zero_()  # predicts the mean of every band
    mels = log_mel(Tones().held_out(8 * 512).mean(dim=1, keepdim=True), MEL_16K)
    target = (mels - other.data_mean) / other.data_std
    found = training.validate({**training.networks, "vae": other})["distance"]
    assert found == pytest.approx(target.abs().mean().item(), rel=1e-4)
    assert found != pytest.approx(training.validate(training.networks)["distance"], rel=1e-2)


def test_each_network_has_its_rate_and_the_divergence_is_per_value_of_the_spectrogram():
    training = learner(discriminator_rate=0.003)
    assert [group["lr"] for group in training.optimizers["discriminator"].param_groups] == [0.003]
    mels = log_mel(Tones().batch(4, 8 * 512, torch.Generator()).mean(dim=1, keepdim=True), MEL_16K)
    with torch.no_grad():
        mean, log_variance = training.vae.encode(mels)
        _, divergence = MelVAE.sample(mean, log_variance, torch.zeros_like(mean))
    row = training.train_step(0, step_generator(0, 0), Update(1.0))
    assert row["kl"] == pytest.approx(divergence.item() / (2 * 80), rel=1e-4)


def test_steps_are_those_of_weights_that_are_normalised_in_use():
    """Against the published form: weights of size one per value, and Adam behind their normalisation."""
    training, steps = learner(kl_weight=0.0), 3
    form = deepcopy(training.vae)
    raw = {
        name: (weight * weight[0].numel() ** 0.5).detach().requires_grad_()
        for name, weight in form.named_parameters()
        if weight.dim() == 3
    }
    gains = {name: gain for name, gain in form.named_parameters() if name not in raw}
    optimizer = torch.optim.Adam([*raw.values(), *gains.values()], 0.02, (0.5, 0.9))

    def normalised(weight: Tensor) -> Tensor:
        return weight / weight.square().mean(dim=(1, 2), keepdim=True).sqrt()

    mels = log_mel(Tones().batch(4, 8 * 512, torch.Generator()).mean(dim=1, keepdim=True), MEL_16K)
    target = (mels - form.data_mean) / form.data_std
    for step in range(steps):
        used = {name: normalised(weight) / weight[0].numel() ** 0.5 for name, weight in raw.items()}
        generator = step_generator(0, step)
        noise = torch.randn(4, 4, 8, generator=generator)
        moments = torch.func.functional_call(form.encoder, _inner(used | gains, "encoder."), target)
        mean, log_variance = moments.chunk(2, dim=1)
        latents = mean + (0.5 * log_variance).exp() * noise
        found = torch.func.functional_call(form.decoder, _inner(used | gains, "decoder."), latents)
        optimizer.zero_grad()
        (found - target).abs().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for weight in raw.values():
                weight.copy_(normalised(weight))
        training.train_step(step, step_generator(0, step), Update(1e9))
    start, differing = dict(small_vae().named_parameters()), []
    for name, weight in training.vae.named_parameters():
        expected = raw[name] / raw[name][0].numel() ** 0.5 if name in raw else gains[name]
        way = torch.linalg.vector_norm(expected - start[name])
        differing.append((torch.linalg.vector_norm(weight - expected) / way).item())
    assert max(differing) < 0.02


def _inner(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def test_the_loss_of_one_batch_goes_down_and_weights_keep_their_size(tmp_path):
    training = learner()
    first = training.validate(training.networks)["distance"]
    options = LoopOptions(30, warmup=1, log_every=30, validate_every=30, save_every=30)
    trainer = Trainer(training, options, tmp_path)
    rows = []
    trainer.run(report=lambda step, kind, row: rows.append((kind, row)))
    assert training.validate(training.networks)["distance"] < 0.7 * first
    assert all(np.isfinite(value) for _, row in rows for value in row.values())
    for network in (training.vae, trainer.averages["vae"]):
        torch.testing.assert_close(sizes(network), torch.ones_like(sizes(network)))
    assert any(
        not torch.equal(one, other)
        for one, other in zip(training.vae.parameters(), trainer.averages["vae"].parameters(), strict=True)
    )


def test_a_large_kl_weight_makes_latents_normal():
    kl = []
    for weight in (0.0, 1e4):
        training = learner(kl_weight=weight)
        rows = [training.train_step(step, step_generator(0, step), Update(1.0)) for step in range(15)]
        kl.append(rows[-1]["kl"])
    assert kl[1] < 0.5 * kl[0]


def test_the_discriminator_joins_at_its_step_with_a_gradient_of_the_distances_size():
    training = learner(adversarial_from=2, adversarial_weight=1.0)
    before = [parameter.detach().clone() for parameter in training.discriminator.parameters()]
    rows = []
    for step in range(6):
        rows.append(training.train_step(step, step_generator(0, step), Update(1e9)))
        if step == 1:
            untouched = zip(before, training.discriminator.parameters(), strict=True)
            assert all(torch.equal(there, here) for there, here in untouched)
    assert "discriminator" not in rows[1]
    assert rows[-1]["discriminator"] < rows[2]["discriminator"]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert all(parameter.requires_grad for parameter in training.discriminator.parameters())
    # Alone, the distance moves the last convolution half as far as both do at most.
    alone = learner(adversarial_from=2, adversarial_weight=0.0)
    for each in (alone, both := learner(adversarial_from=0, adversarial_weight=1.0)):
        each.train_step(2, step_generator(0, 2), Update(1e9))
    ratio = _last_gradient(both) / _last_gradient(alone)
    assert 0 < ratio <= 2.001
    assert abs(ratio - 1) > 1e-3


def _last_gradient(training: MelVAELearner) -> float:
    gradient = training.vae.decoder.conv_out.weight.grad
    assert gradient is not None
    return gradient.norm().item()


def test_a_run_resumes_bit_exactly(tmp_path):
    def run(folder: Path, *pieces: int) -> Trainer:
        for steps in pieces:
            options = LoopOptions(steps, warmup=2, save_every=2, validate_every=2)
            trainer = Trainer(learner(adversarial_from=2), options, folder)
            trainer.run()
        return trainer

    whole, pieces = run(tmp_path / "whole", 5), run(tmp_path / "pieces", 3, 5)
    for name, network in whole.best_networks().items():
        other = pieces.best_networks()[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch", 0), ("excerpt", 0), ("learning_rate", 0.0), ("kl_weight", -1.0), ("adversarial_from", -1)],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        MelVAEOptions(**{name: value})


# --- through the command line ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for number in range(3):
        noise = 0.1 * generator.standard_normal((20_000, 2))
        soundfile.write(folder / f"{number}.wav", noise.astype(np.float32), 16_000)
    return folder


def train(sounds: Path, run: Path, *more: object) -> int:
    command = ["train", "vae", *COMMAND, "--data", sounds, "-o", run, "--steps", 2, "--batch", 2]
    command += ["--excerpt", 8, "--warmup", 1, "-q", *more]
    return main([str(each) for each in command])


def test_an_exported_vae_is_the_one_that_was_trained(sounds, tmp_path, capsys):
    run, weights = tmp_path / "run", tmp_path / "weights"
    assert train(sounds, run, "--adversarial-from", 1) == 0
    assert main(["train", "export", str(run), "-o", str(weights)]) == 0
    assert capsys.readouterr().out.endswith(f"{weights / 'mmaudio-tiny' / 'vae.safetensors'}\n")
    averages = read_checkpoint(run / CHECKPOINT)["averages"]["vae"]
    loaded, start = (load(each, "vae", preset=MMAUDIO_TINY).state_dict() for each in (weights, tmp_path))
    assert loaded.keys() == averages.keys()
    assert all(torch.equal(loaded[name], value) for name, value in averages.items())
    changed = {name for name in loaded if not torch.equal(loaded[name], start[name])}
    assert changed == loaded.keys() - {"data_mean", "data_std"}
    exported = weights / "mmaudio-tiny" / "vae.safetensors"
    assert train(sounds, tmp_path / "further", "--from", exported) == 0
    result = thinksound.load("mmaudio-tiny", weights, device="cpu")(
        caption="rain", duration=1.0, num_inference_steps=1
    )
    assert result.waveform.shape[0] == 1

    assert main(["train", "export", str(run), "-o", str(tmp_path / "other"), "--standardise"]) == 1
    assert "the transformer of mmaudio-tiny standardises latents itself" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_published_file_is_a_start_and_its_weights_are_sized_once(sounds, tmp_path):
    start = load(tmp_path, "vae", preset=MMAUDIO_TINY).state_dict()
    published = {
        name: value * (3 if value.dim() == 3 and name.endswith("weight") else 1)
        for name, value in start.items()
    }
    torch.save(published, tmp_path / "v1.pth")
    rate = ("--learning-rate", 1e-9)
    assert train(sounds, tmp_path / "run", "--from", tmp_path / "v1.pth", *rate) == 0
    assert main(["train", "export", str(tmp_path / "run"), "-o", str(tmp_path / "weights")]) == 0
    exported = tmp_path / "weights" / "mmaudio-tiny" / "vae.safetensors"
    assert train(sounds, tmp_path / "again", "--from", exported, *rate) == 0
    expected = network_tensors(published)
    for run in ("run", "again"):
        found = read_checkpoint(tmp_path / run / CHECKPOINT)["averages"]["vae"]
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_scratch_measures_the_bands_of_the_sounds(sounds, tmp_path):
    assert train(sounds, tmp_path / "run", "--from", "scratch") == 0
    found = read_checkpoint(tmp_path / "run" / CHECKPOINT)["averages"]["vae"]
    assert found["data_std"].flatten().max() < 1  # log10 of noise, of one level or another
    assert -3 < found["data_mean"].mean() < -0.5
    torch.testing.assert_close(found["encoder.conv_in.weight"].square().sum(dim=(1, 2)), torch.ones(32))
