"""The networks of the evaluation: equal to the original and to the library's own, strict about their files."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from parity.procedural import draw
from reference import assert_close, golden, seeded
from torch import Tensor
from transformers import ASTConfig, ASTModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from thinksound.config import OffsetConfig, SynchformerConfig
from thinksound.errors import MediaError
from thinksound.evaluation.desync import RATE, SEGMENT, STRIDE, log_mel, offset_grid, predict_offsets
from thinksound.models.synchformer_audio import SpectrogramTransformer
from thinksound.models.synchformer_offset import SynchformerOffset

SMALL_TOWERS = SynchformerConfig(embed_dim=48, depth=2, num_heads=4, image_size=32)
SMALL_OFFSET = OffsetConfig(SMALL_TOWERS)


@functools.cache
def small_offset() -> SynchformerOffset:
    return seeded(SynchformerOffset(SMALL_OFFSET), "")


def golden_sound() -> Tensor:
    """4.8 s of noise that grows, (A,) at 16 kHz."""
    return torch.from_numpy(draw("input.offsettiny.waveform", (76_800,))) * 0.1 * torch.linspace(0, 1, 76_800)


# --- Synchformer ---------------------------------------------------------------------------------


def test_audio_tower_and_head_equal_the_original():
    """The golden file holds what the original implementation gave for the same seeded weights and sound."""
    tensors, _ = golden("synchformer_offset_tiny")
    network = small_offset()
    spectrograms = log_mel(golden_sound().unfold(0, SEGMENT, STRIDE), 128, 66)
    assert_close(spectrograms[13:], tensors["mid.spectrogram"])
    audio = network.afeat_extractor(spectrograms)
    assert_close(audio, tensors["mid.audio"])
    visual = torch.from_numpy(draw("input.offsettiny.visual", (1, 14, 8, 48)))
    assert_close(network(visual, audio[None]), tensors["out.logits"])


def test_spectrogram_transformer_equals_that_of_transformers():
    """The same seeded values under both names; transformers has its own implementation of the network."""
    ours = seeded(SpectrogramTransformer(SMALL_OFFSET), "ast.")
    config = ASTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, max_length=66
    )
    theirs = ASTModel(config).eval()
    renamed = {}
    for name, value in ours.state_dict().items():
        for old, new in (
            ("encoder.layer.", "layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(old, new)
        renamed[name] = value
    theirs.load_state_dict(renamed, strict=True)
    spectrograms = torch.from_numpy(draw("input.ast.spectrograms", (3, 128, 66)))
    with torch.inference_mode():
        assert_close(ours(spectrograms), theirs(spectrograms.transpose(1, 2)).last_hidden_state)


def test_spectrograms_equal_those_of_transformers_for_the_published_settings():
    sound = golden_sound()[40_000 : 40_000 + SEGMENT]
    with warnings.catch_warnings(action="ignore"):  # the lowest bands hold no bin of their own
        filters = mel_filter_bank(513, 128, 0, 8_000, RATE, norm=None, mel_scale="htk")
    wanted = spectrogram(
        sound.double().numpy(), window_function(400, "hann"), 400, 160, 1_024, power=2.0, mel_filters=filters
    )
    got = log_mel(sound[None], 128, 66)[0]
    assert_close(got[:, :65], (torch.from_numpy(wanted + 1e-6).log() + 4.2677393) / (2 * 4.5689974))
    assert torch.equal(got[:, 65], torch.full((128,), 4.2677393 / (2 * 4.5689974)))


def test_sizes_of_the_published_network():
    config = OffsetConfig()
    assert (config.bands, config.moments) == (12, 6)
    with torch.device("meta"):
        network = SynchformerOffset(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == 237_460_245
    assert network.afeat_extractor(torch.zeros(2, 128, 66, device="meta")).shape == (2, 6, 768)
    visual, audio = torch.zeros(1, 14, 8, 768, device="meta"), torch.zeros(1, 14, 6, 768, device="meta")
    assert network(visual, audio).shape == (1, 21)


def test_offsets_lie_on_a_grid_of_a_fifth_of_a_second():
    grid = offset_grid(21)
    assert grid.tolist() == pytest.approx([-2 + 0.2 * step for step in range(21)], abs=1e-6)


@functools.cache
def clip_of(seconds: float) -> tuple[Tensor, Tensor]:
    """Pictures at 25 per second and sound at 16 kHz."""
    frames = torch.from_numpy(draw(f"frames{seconds}", (round(25 * seconds), 32, 32, 3)))
    frames = frames.mul(60).add(128).clamp(0, 255).to(torch.uint8)
    return frames, torch.from_numpy(draw(f"sound{seconds}", (round(RATE * seconds),))) * 0.1


def test_beginning_and_end_are_judged_by_what_is_there():
    """Each answer is the one for the 4.8 s cut from that end alone."""
    frames, sound = clip_of(5.76)  # 17 segments: three more than fit
    network, logits = copy.deepcopy(small_offset()), []
    with network.register_forward_hook(lambda module, inputs, output: logits.append(output)):
        predict_offsets(network, frames, sound)
    # Seeded values prefer one class whatever they are shown: take that away, and the two ends differ.
    network.transformer.off_head.bias -= logits[0].mean(dim=0)
    first, last = predict_offsets(network, frames, sound)
    assert first != last
    assert predict_offsets(network, frames[:120], sound[: 120 * 640]) == (first, first)
    assert predict_offsets(network, frames[-120:], sound[-120 * 640 :]) == (last, last)
    longer = torch.cat([sound, torch.ones(9_000)])  # not a whole segment of pictures more
    assert predict_offsets(network, frames, longer) == (first, last)


@pytest.mark.parametrize(("pictures_s", "sound_s"), [(4.76, 6.0), (6.0, 4.79), (6.0, 0.1)])
def test_less_than_fourteen_segments_are_refused(pictures_s, sound_s):
    frames, sound = clip_of(6.0)
    with pytest.raises(MediaError, match=r"DeSync needs 4\.8 s"):
        predict_offsets(small_offset(), frames[: round(25 * pictures_s)], sound[: round(RATE * sound_s)])
