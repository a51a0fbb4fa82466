"""The vocoder BigVGAN against the original's numbers, and weight norm in both spellings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity.mmaudio.procedural_mmaudio import mel_input
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

from thinksound.errors import InputError, WeightsError
from thinksound.models.bigvgan import (
    BIGVGAN_16K,
    BIGVGAN_44K,
    AntiAliasedSnake,
    BigVGAN,
    BigVGANConfig,
    low_pass,
    network_tensors,
)

pytestmark = pytest.mark.slow

RATES = {"16k": (BIGVGAN_16K, "best_netG.pt", 784), "44k": (BIGVGAN_44K, "bigvgan_generator.pt", 783)}
SMALL = BigVGANConfig(6, 8, rates=(4, 2), kernels=(8, 4), bound="tanh", final_bias=True)


def published_shapes(network: BigVGAN) -> dict[str, tuple[int, ...]]:
    """Those that the file of a network of this size has, without filters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes_of(network.state_dict()).items():
        if name.endswith(".weight"):
            shapes[f"{name}_g"] = (shape[0], 1, 1)
            shapes[f"{name}_v"] = shape
        else:
            shapes[name] = shape
    return shapes


def seeded_vocoder(config: BigVGANConfig) -> BigVGAN:
    network = on_meta(lambda: BigVGAN(config))
    return filled(network, network_tensors(seeded_tensors(published_shapes(network))))


@pytest.mark.parametrize("rate", RATES)
def test_vocoder_has_the_tensors_of_the_published_file(rate):
    config, file, count = RATES[rate]
    published = published_on_meta(file)
    assert len(published) == count
    network = on_meta(lambda: BigVGAN(config))
    assert shapes_of(network_tensors(published)) == shapes_of(network.state_dict())
    wanted = {name: shape for name, shape in manifest(file).items() if not name.endswith(".filter")}
    assert published_shapes(network) == wanted


def check_vocoder(network: BigVGAN, name: str) -> dict[str, float]:
    tensors, metadata = mmaudio_golden(name)
    mel = torch.from_numpy(mel_input(metadata["tag"], network.config.mel_bands, int(metadata["frames"])))
    check_sums({"mel": mel}, metadata)
    seen: dict[str, Tensor] = {"mid.filter": low_pass()[None, None]}
    network.conv_post.register_forward_hook(lambda _m, _i, out: seen.__setitem__("out.before_bound", out))
    with torch.inference_mode():
        seen["out.audio"] = network.vocode(mel)
    return assert_matches(seen, tensors)


@pytest.mark.parametrize("rate", RATES)
def test_small_vocoder(rate):
    check_vocoder(seeded_vocoder(replace(RATES[rate][0], channels=128)), f"vocoder_tiny_{rate}")


@pytest.mark.parity
@pytest.mark.parametrize("rate", RATES)
def test_full_size_vocoder(rate):
    config, file, _ = RATES[rate]
    network = filled(on_meta(lambda: BigVGAN(config)), network_tensors(seeded_tensors(manifest(file))))
    for key, error in check_vocoder(network, f"vocoder_full_{rate}").items():
        print(f"PARITY vocoder, {rate}, {key}: {error:.1e}")


@pytest.mark.parametrize("frames", [1, 7])
def test_a_batch_is_its_items_and_each_frame_has_its_samples(frames):
    network = seeded_vocoder(SMALL)
    mel = torch.randn(2, 6, frames, generator=torch.Generator().manual_seed(0))
    audio = network.vocode(mel)
    assert audio.shape == (2, 1, SMALL.hop * frames)
    assert_close(audio, torch.cat([network.vocode(one[None]) for one in mel]))
    assert (BIGVGAN_16K.hop, BIGVGAN_44K.hop) == (256, 512)


def test_both_spellings_of_weight_norm_and_folded_weights_give_the_same_network():
    network = on_meta(lambda: BigVGAN(SMALL))
    older = seeded_tensors(published_shapes(network))
    newer = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): older[name]
        for name in older
    }
    folded = {name: tensor.clone() for name, tensor in network_tensors(older).items()}
    for other in (network_tensors(newer), network_tensors(folded)):
        assert set(other) == set(folded)
        assert all(torch.equal(other[name], folded[name]) for name in folded)


def test_folding_is_that_of_pytorch_for_transposed_convolutions_too():
    with pytest.warns(FutureWarning):
        reference = torch.nn.utils.weight_norm(torch.nn.ConvTranspose1d(4, 3, 8, 4), dim=0)
    reference.get_parameter("weight_g").data *= torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    state = {f"ups.0.0.{name}": tensor for name, tensor in reference.state_dict().items()}
    sound = torch.randn(1, 4, 5)
    weight = network_tensors(state)["ups.0.0.weight"]
    bias = reference.get_parameter("bias").detach()
    got = torch.nn.functional.conv_transpose1d(sound, weight, bias, stride=4)
    assert_close(got, reference(sound).detach())


def test_a_gain_of_other_channels_is_reported_as_a_file_of_another_network():
    network = on_meta(lambda: BigVGAN(SMALL))
    tensors = dict(seeded_tensors(published_shapes(network)))
    tensors["ups.1.0.weight_g"] = tensors["ups.1.0.weight_g"][:2]
    with pytest.raises(WeightsError, match=r"missing \(ups\.1\.0\.weight .*ups\.1\.0\.weight_g"):
        filled(network, network_tensors(tensors))


def test_slow_signals_pass_the_filters_and_a_constant_stays_one():
    activation = AntiAliasedSnake(2)  # alpha and beta are one
    x = torch.full((1, 2, 9), 0.7)
    with torch.inference_mode():
        assert_close(activation(x, low_pass()), activation.act(x))
        slow = torch.sin(torch.arange(200) * 0.05).expand(1, 2, -1)
        assert_close(activation(slow, low_pass()), activation.act(slow), 5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": (8,)}, "2 rates and 1 kernels"),
        ({"kernels": (8, 3)}, "even numbers"),
        ({"channels": 6}, "halved 2 times"),
    ],
)
def test_impossible_vocoder_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)
