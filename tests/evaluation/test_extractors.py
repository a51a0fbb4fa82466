"""The networks of the evaluation: equal to the original and to transformers, and loaded strictly."""

from __future__ import annotations

import functools
import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.procedural import draw, fill_state_dict, load_manifest
from safetensors.torch import load_file, save_file
from support.listeners import (
    AST,
    CLAP,
    SMALL_AST,
    SMALL_CLAP,
    SMALL_OFFSET,
    SYNCHFORMER,
    library_name,
    without_favourite,
    write_ast,
    write_synchformer,
)
from support.networks import load_as
from support.paths import MANIFESTS
from support.reference import assert_close, golden, seeded
from torch import Tensor
from transformers import ASTConfig, ASTForAudioClassification, ASTModel, ClapModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from thinksound.checkpoints.checksums import verify
from thinksound.checkpoints.convert import convert
from thinksound.checkpoints.locate import missing
from thinksound.errors import MediaError, WeightsError
from thinksound.evaluation.files.clap import Clap, load_clap
from thinksound.evaluation.files.desync import RATE, SEGMENT, STRIDE, log_mel, offset_grid, predict_offsets
from thinksound.evaluation.files.tagger import Tagger, load_tagger
from thinksound.models.synchformer_audio import OffsetConfig, SpectrogramTransformer
from thinksound.models.synchformer_offset import SynchformerOffset

pytestmark = pytest.mark.slow


@functools.cache
def small_offset() -> SynchformerOffset:
    return seeded(SynchformerOffset(SMALL_OFFSET), "")


def golden_sound(tag: str = "offsettiny") -> Tensor:
    """4.8 s of noise that grows, (A,) at 16 kHz."""
    return torch.from_numpy(draw(f"input.{tag}.waveform", (76_800,))) * 0.1 * torch.linspace(0, 1, 76_800)


# --- Synchformer ---------------------------------------------------------------------------------


def check_offset(network: SynchformerOffset, name: str) -> None:
    """Compare with the golden file: the original's output for the same seeded weights and sound."""
    tensors, metadata = golden(name)
    spectrograms = log_mel(golden_sound(metadata["tag"]).unfold(0, SEGMENT, STRIDE), 128, 66)
    if "mid.spectrogram" in tensors:
        assert_close(spectrograms[13:], tensors["mid.spectrogram"])
    with torch.inference_mode():
        audio = network.afeat_extractor(spectrograms)
        assert_close(audio[-len(tensors["mid.audio"]) :], tensors["mid.audio"])
        width = network.config.towers.embed_dim
        visual = torch.from_numpy(draw(f"input.{metadata['tag']}.visual", (1, 14, 8, width)))
        assert_close(network(visual, audio[None]), tensors["out.logits"])


def test_audio_tower_and_head_equal_the_original():
    check_offset(small_offset(), "synchformer_offset_tiny")


@pytest.mark.parity
def test_published_size_is_read_whole_and_equals_the_original(tmp_path):
    """Reads a file of the published name, layout and size (0.95 GB), with seeded values for every tensor."""
    manifest = load_manifest(MANIFESTS / f"{SYNCHFORMER}.json")
    state = {key: torch.from_numpy(array) for key, array in fill_state_dict(manifest).items()}
    torch.save(state, tmp_path / SYNCHFORMER)
    del state
    network = load_as(SynchformerOffset, OffsetConfig(), tmp_path, "synchformer_offset", torch.float32)
    (tmp_path / SYNCHFORMER).unlink()
    check_offset(network, "synchformer_offset_full")


def test_every_tensor_of_the_checkpoint_is_taken(tmp_path):
    wanted = write_synchformer(tmp_path)
    network = load_as(SynchformerOffset, SMALL_OFFSET, tmp_path, "synchformer_offset", torch.float32)
    held = network.state_dict()
    assert set(held) == set(wanted) and all(torch.equal(held[name], wanted[name]) for name in wanted)
    assert not network.training


@pytest.mark.parametrize(("change", "says"), [("visual half", "missing"), ("more", "do not belong to it")])
def test_a_checkpoint_with_less_or_more_is_refused(tmp_path, change, says):
    tensors = write_synchformer(tmp_path)
    if change == "visual half":
        tensors = {name: value for name, value in tensors.items() if name.startswith("vfeat_extractor.")}
    else:
        tensors["transformer.sync_head.weight"] = torch.ones(2, 48)
    torch.save(tensors, tmp_path / SYNCHFORMER)
    with pytest.raises(WeightsError, match=says):
        load_as(SynchformerOffset, SMALL_OFFSET, tmp_path, "synchformer_offset", torch.float32)


def test_spectrogram_transformer_equals_that_of_transformers():
    """Both implementations of the network have the same seeded values under their own names."""
    ours = seeded(SpectrogramTransformer(SMALL_OFFSET), "ast.")
    config = ASTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, max_length=66
    )
    theirs = ASTModel(config).eval()
    renamed = {library_name(name): value for name, value in ours.state_dict().items()}
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
    assert (grid[0], grid[9:12], grid[20]) == (-2, [-0.2, 0, 0.2], 2)
    assert grid == pytest.approx([-2 + 0.2 * step for step in range(21)], abs=1e-6)


@functools.cache
def clip_of(seconds: float) -> tuple[Tensor, Tensor]:
    """Frames at 25 per second and sound at 16 kHz."""
    frames = torch.from_numpy(draw(f"frames{seconds}", (round(25 * seconds), 32, 32, 3)))
    frames = frames.mul(60).add(128).clamp(0, 255).to(torch.uint8)
    return frames, torch.from_numpy(draw(f"sound{seconds}", (round(RATE * seconds),))) * 0.1


def test_beginning_and_end_are_judged_by_what_is_there():
    """Each offset is that of the 4.8 s cut from its end."""
    frames, sound = clip_of(5.76)  # 17 segments: three more than fit
    network = without_favourite(small_offset(), frames, sound)
    first, last = predict_offsets(network, frames, sound)
    assert first != last
    assert predict_offsets(network, frames[:120], sound[: 120 * 640]) == (first, first)
    assert predict_offsets(network, frames[-120:], sound[-120 * 640 :]) == (last, last)
    longer = torch.cat([sound, torch.ones(9_000)])  # longer than the frames, which bound the segments
    assert predict_offsets(network, frames, longer) == (first, last)


@pytest.mark.parametrize(("pictures_s", "sound_s"), [(4.76, 6.0), (6.0, 4.79), (6.0, 0.1)])
def test_less_than_fourteen_segments_are_refused(pictures_s, sound_s):
    frames, sound = clip_of(6.0)
    with pytest.raises(MediaError, match=r"DeSync needs 4\.8 s"):
        predict_offsets(small_offset(), frames[: round(25 * pictures_s)], sound[: round(RATE * sound_s)])


def test_the_converted_half_does_not_stand_for_the_whole(tmp_path):
    write_synchformer(tmp_path)
    convert(tmp_path, ["synchformer"], {})
    assert missing(tmp_path, ["synchformer", "synchformer_offset"]) == []
    (tmp_path / SYNCHFORMER).unlink()
    assert [file.key for file in missing(tmp_path, ["synchformer", "synchformer_offset"])] == [
        "synchformer_offset"
    ]
    with pytest.raises(WeightsError, match=f"weights are missing in .*\n  {SYNCHFORMER}, from FunAudioLLM"):
        load_as(SynchformerOffset, SMALL_OFFSET, tmp_path, "synchformer_offset", torch.float32)


def test_the_file_of_two_networks_is_verified_once(tmp_path):
    write_synchformer(tmp_path)
    assert [row.path for row in verify(tmp_path)].count(tmp_path / SYNCHFORMER) == 1


# --- networks of the transformers library ----------------------------------------------------------


@pytest.fixture(scope="module")
def tagger(listener_weights) -> Tagger:
    return load_tagger(listener_weights)


@pytest.fixture(scope="module")
def clap(listener_weights) -> Clap:
    return load_clap(listener_weights)


def sound(rate: int, seconds: float, seed: str = "sound") -> Tensor:
    return torch.from_numpy(draw(f"{seed}{rate}", (round(rate * seconds),))) * 0.1


def test_tagger_holds_the_published_tensors_and_gives_what_they_give(listener_weights, tagger):
    """Compare with the library's own class, filled from the same file, on the same spectrogram."""
    assert (tagger.rate, tagger.window_s) == (16_000, pytest.approx(10.24))
    network = ASTForAudioClassification(SMALL_AST).eval()
    tensors = load_file(listener_weights / AST / "model.safetensors")
    network.load_state_dict({library_name(name): value for name, value in tensors.items()}, strict=True)
    heard = tagger(sound(16_000, 4))
    inputs = tagger._features(sound(16_000, 4).numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        logits = network(inputs["input_values"]).logits
        tokens = network.audio_spectrogram_transformer(inputs["input_values"]).last_hidden_state
    assert_close(heard.logits, logits[0])
    assert_close(heard.embedding, tokens[0, :2].mean(dim=0))


def test_clap_holds_the_published_tensors_and_gives_what_they_give(listener_weights, clap):
    assert (clap.rate, clap.window_s) == (48_000, 10)
    network = ClapModel(SMALL_CLAP).eval()
    network.load_state_dict(torch.load(listener_weights / CLAP / "pytorch_model.bin"), strict=True)
    ids = [0, *(clap._tokenizer.convert_tokens_to_ids(letter) for letter in "oak"), 2]
    inputs = clap._features(sound(48_000, 4).numpy(), sampling_rate=48_000, return_tensors="pt")
    with torch.inference_mode():
        both = network(torch.tensor([ids]), inputs["input_features"])
    assert_close(clap(sound(48_000, 4)).embedding, both.audio_embeds[0])
    assert_close(clap.encode_text("oak"), both.text_embeds[0])
    assert clap(sound(48_000, 4)).embedding.norm() == pytest.approx(1, abs=1e-6)


def test_what_comes_after_the_window_is_not_heard(tagger, clap):
    for network in (tagger, clap):
        window = round(network.window_s * network.rate)
        long = sound(network.rate, 12)
        assert torch.equal(network(long).embedding, network(long[:window]).embedding)
        other = torch.cat([long[: window // 2], sound(network.rate, 6, "other")])
        assert not torch.allclose(network(long).embedding, network(other).embedding, atol=1e-4)


def test_listening_leaves_shared_random_state_alone(clap):
    """The library itself would choose a part of a long sound at random."""

    def numpy_state() -> list[int]:
        return np.random.get_state(legacy=False)["state"]["key"].tolist()

    states = random.getstate(), numpy_state(), torch.get_rng_state()
    clap(sound(48_000, 12))
    assert random.getstate() == states[0]
    assert numpy_state() == states[1] and torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("text", ["", "a" * 10_000, "Ein Hammer schlägt 木 🔨"])
def test_any_text_has_an_embedding(clap, text):
    assert clap.encode_text(text).norm() == pytest.approx(1, abs=1e-5)


def spoil(folder: Path, change: str) -> None:
    """Change a folder of a published network."""
    tensors = load_file(folder / "model.safetensors")
    name = "audio_spectrogram_transformer.encoder.layer.1.output.dense.weight"
    if change == "a tensor less":
        del tensors[name]
    elif change == "a tensor more":
        tensors["decoder.weight"] = torch.ones(3)
    elif change == "another size":
        tensors[name] = torch.ones(48, 95)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if change == "cut short":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif change == "no settings":
        (folder / "preprocessor_config.json").unlink()
    elif change == "another network":
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "vit"}
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("a tensor less", r"layers\.1\.mlp\.fc2\.weight is missing, 1 in all"),
        ("a tensor more", r"decoder\.weight is not known to it"),
        ("another size", r"fc2\.weight is of another size"),
        ("cut short", "damaged or cut short"),
        ("no settings", r"no preprocessor_config\.json"),
        ("another network", "describes a 'vit' network"),
    ],
)
def test_a_folder_that_is_not_the_published_one_is_refused(tmp_path, listener_weights, change, says):
    shutil.copytree(listener_weights / AST, tmp_path / AST)
    spoil(tmp_path / AST, change)
    with pytest.raises(WeightsError, match=says):
        load_tagger(tmp_path)


def test_a_tokenizer_with_more_words_than_the_network_is_refused(tmp_path, listener_weights):
    shutil.copytree(listener_weights / CLAP, tmp_path / CLAP)
    vocabulary = json.loads((tmp_path / CLAP / "vocab.json").read_text())
    (tmp_path / CLAP / "vocab.json").write_text(json.dumps(vocabulary | {"word": len(vocabulary)}))
    with pytest.raises(WeightsError, match="the tokenizer has 262 tokens, the network 261"):
        load_clap(tmp_path)


def test_weights_that_changed_since_they_were_first_used_are_refused(tmp_path):
    write_ast(tmp_path)
    load_tagger(tmp_path)
    path = tmp_path / AST / "model.safetensors"
    tensors = {name: value + 1 for name, value in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(WeightsError, match="changed since first use"):
        load_tagger(tmp_path)
