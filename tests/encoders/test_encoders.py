"""The encoders with small random networks: batches, texts of any kind, dtypes, folders that are not right."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from thinksound import WeightsError
from thinksound.encoders.metaclip import MetaCLIP, build_metaclip
from thinksound.encoders.motion import encode_motion
from thinksound.encoders.pixels import normalize_sync
from thinksound.encoders.pretrained import tokenize
from thinksound.encoders.reading import notes_on, read_beginning, read_text
from thinksound.encoders.sync import encode_sync
from thinksound.encoders.t5 import T5Text, build_t5
from thinksound.models.motion import MotionConfig, MotionTower
from thinksound.models.synchformer import (
    SYNC_SEGMENT,
    SYNC_STRIDE,
    SynchformerConfig,
    VisualTower,
    sync_segment_count,
)

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def randomize(network: nn.Module) -> None:
    """Fill a network whose parameters are on ``meta`` with unit-scale random values."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in network.state_dict().items():
        scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        offset = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
        weights[name] = offset + scale * torch.randn(value.shape, generator=generator)
    network.load_state_dict(weights, strict=True, assign=True)


@pytest.fixture(scope="module")
def folders(parity: Path) -> Path:
    return parity / "features" / "text"


@pytest.fixture(scope="module")
def clip(folders: Path) -> MetaCLIP:
    encoder = build_metaclip(folders / "clip_tiny")
    randomize(encoder.model)
    return encoder


@pytest.fixture(scope="module")
def t5_text(folders: Path) -> T5Text:
    encoder = build_t5(folders / "t5_tiny")
    randomize(encoder.model)
    return encoder


@pytest.fixture(scope="module")
def tower() -> VisualTower:
    network = VisualTower(SynchformerConfig(embed_dim=16, depth=1, num_heads=2))
    randomize(network)
    return network


def random_frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def transformers_log() -> Iterator[list[str]]:
    """What transformers would print on the terminal."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("transformers")
    collector = Collector(logging.WARNING)
    logger.addHandler(collector)
    yield messages
    logger.removeHandler(collector)


def test_picture_features_do_not_depend_on_the_batch(clip: MetaCLIP) -> None:
    frames = random_frames(5)
    together = clip.encode_frames(frames, batch_size=5)
    assert together.shape == (5, 32)
    for size in (1, 2):
        torch.testing.assert_close(
            clip.encode_frames(frames, batch_size=size), together, rtol=1e-5, atol=1e-5
        )


def test_picture_features_keep_their_length(clip: MetaCLIP) -> None:
    assert clip.encode_frames(random_frames(3)).norm(dim=-1).sub(1).abs().min() > 0.1


def test_sync_features_do_not_depend_on_the_batch(tower: VisualTower) -> None:
    frames = random_frames(SYNC_SEGMENT + 4 * SYNC_STRIDE)
    together = encode_sync(tower, frames, segment_batch=5)
    assert together.shape == (5 * 8, 16)
    for size in (1, 2):
        torch.testing.assert_close(
            encode_sync(tower, frames, segment_batch=size), together, rtol=1e-5, atol=1e-5
        )


def test_sync_segments_start_every_8_pictures(tower: VisualTower) -> None:
    frames = random_frames(SYNC_SEGMENT + 2 * SYNC_STRIDE)
    features = encode_sync(tower, frames, segment_batch=2)
    for segment in range(3):
        alone = encode_sync(tower, frames[segment * SYNC_STRIDE :][:SYNC_SEGMENT])
        torch.testing.assert_close(features[8 * segment :][:8], alone, rtol=1e-5, atol=1e-5)


def test_pictures_after_the_last_whole_segment_change_nothing(tower: VisualTower) -> None:
    frames = random_frames(SYNC_SEGMENT + SYNC_STRIDE - 1)
    assert torch.equal(encode_sync(tower, frames), encode_sync(tower, frames[:SYNC_SEGMENT]))


@pytest.mark.parametrize("count", [SYNC_SEGMENT, 64, 150])
def test_motion_features_are_as_many_as_synchformers_and_follow_the_whole_clip(count: int) -> None:
    motion = MotionTower(MotionConfig(embed_dim=16, channels=(4, 4, 4), depth=1))
    randomize(motion)
    frames = random_frames(count)
    calls: list[tuple[int, int]] = []
    features = encode_motion(motion, frames, progress=lambda *call: calls.append(call))
    assert features.shape == (8 * sync_segment_count(count), 16)
    assert calls == [(done, count) for done in (*range(64, count, 64), count)]
    # Reducing frames in batches is reducing them at once.
    with torch.inference_mode():
        followed = motion(normalize_sync(frames)[None])
    torch.testing.assert_close(features, motion.spread(followed, len(features))[0], rtol=1e-5, atol=1e-5)


def test_progress_counts_pictures_and_segments(clip: MetaCLIP, tower: VisualTower) -> None:
    calls: list[tuple[int, int]] = []
    clip.encode_frames(random_frames(5), batch_size=2, progress=lambda *call: calls.append(call))
    assert calls == [(2, 5), (4, 5), (5, 5)]
    calls.clear()
    frames = random_frames(SYNC_SEGMENT + 2 * SYNC_STRIDE)
    encode_sync(tower, frames, segment_batch=2, progress=lambda *call: calls.append(call))
    assert calls == [(2, 3), (3, 3)]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("   \n\t ", id="blank"),
        pytest.param("😀🔥" * 20, id="emoji"),
        pytest.param("\x00\x1b[31m\u202e", id="control characters"),
        pytest.param("雨が屋根に降る", id="japanese"),
        pytest.param("dog " * 25_000, id="100,000 characters in words"),
        pytest.param("a" * 100_000, id="100,000 characters in one word"),
        pytest.param("😀" * 100_000, id="100,000 emoji"),
        pytest.param("<|endoftext|></s><pad>", id="special tokens spelled out"),
    ],
)
def test_any_text_gives_77_finite_rows_in_no_time(
    clip: MetaCLIP, t5_text: T5Text, transformers_log: list[str], text: str
) -> None:
    started = time.monotonic()
    features = [clip.encode_text(text), t5_text.encode(text)]
    assert time.monotonic() - started < 5
    for rows in features:
        assert rows.shape == (77, 64)
        assert rows.dtype == torch.float32
        assert rows.isfinite().all()
    assert transformers_log == []


def test_a_long_text_is_cut_at_its_end(clip: MetaCLIP, t5_text: T5Text) -> None:
    long = "a dog barks at the rain " * 50
    for tokenizer in (clip.tokenizer, t5_text.tokenizer):
        ids, mask = tokenize(tokenizer, long, CPU)
        longer, _ = tokenize(tokenizer, long + "and a cat", CPU)
        assert ids.shape == (1, 77)
        assert mask.all()
        assert ids[0, -1] == tokenizer.eos_token_id
        assert torch.equal(ids, longer)


def test_words_are_counted_by_the_tokens_that_are_kept(clip: MetaCLIP, t5_text: T5Text) -> None:
    for tokenizer in (clip.tokenizer, t5_text.tokenizer):
        for text in ("dog bounces in the rain " * 40, "雨が 屋根に降る" * 30, "dogs" * 200, "🔥" * 100):
            reading = read_text(tokenizer, text)
            counted = [
                match.end() for match in re.finditer(r"\S+" if reading.unit == "words" else r"\S", text)
            ]
            assert reading.total == len(counted)
            if tokenizer is t5_text.tokenizer and text[0] in "雨🔥":  # few unknown tokens for much text
                continue
            assert reading.read < reading.total
            # What was read fits exactly: with one more word or character of it, the end would be cut.
            fits, cut = (text[: counted[reading.read + more - 1]] for more in (0, 1))
            assert read_text(tokenizer, fits).read == reading.read
            assert not _is_cut(tokenizer, fits) and _is_cut(tokenizer, cut)


def _is_cut(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return len(tokenizer(text, verbose=False)["input_ids"]) > 77


@pytest.mark.parametrize("kept", range(6))
def test_a_tokenizer_without_positions_is_asked_how_much_fits(kept: int) -> None:
    reading = read_beginning("one two  three four five", lambda text: len(text.split()) <= kept)
    assert (reading.read, reading.total, reading.unit) == (min(kept, 5), 5, "words")
    in_characters = read_beginning("雨が屋根に", lambda text: len(text) <= kept)
    assert (in_characters.read, in_characters.total, in_characters.unit) == (min(kept, 5), 5, "characters")


@pytest.mark.parametrize(
    ("text", "unreadable", "understood"),
    [
        ("a dog barks", (), True),
        ("", (), True),
        ("... !", (), True),
        ("Топор бьёт дерево", ("Топор бьёт дерево",), False),
        ("雨が屋根に降る", ("雨が屋根に降る",), False),
        ("나무, 도끼", ("나무", "도끼"), False),
        ("a dog 雨 barks at rain ~ in the 屋根", ("雨", "屋根"), True),
        ("🔥 dog", ("🔥",), True),
    ],
    ids=str,
)
def test_what_t5_has_no_token_for(
    t5_text: T5Text, clip: MetaCLIP, text: str, unreadable: tuple[str, ...], understood: bool
) -> None:
    reading = read_text(t5_text.tokenizer, text)
    assert (reading.unreadable, reading.understood) == (unreadable, understood)
    notes = notes_on("cot", "T5", read_text(t5_text.tokenizer, text))
    assert len(notes) == bool(unreadable)
    assert all("describe the sound in English" in note and f'"{unreadable[0]}"' in note for note in notes)
    assert all(("can read nothing of it" in note) != understood for note in notes)
    # CLIP's tokens are bytes, all of which it knows.
    assert notes_on("caption", "MetaCLIP", read_text(clip.tokenizer, text)) == []


def test_counting_words_does_not_change_what_the_network_reads(t5_text: T5Text) -> None:
    for text in ("a dog", "dog " * 100):
        before = tokenize(t5_text.tokenizer, text, CPU)
        read_text(t5_text.tokenizer, "dog " * 100)
        for first, second in zip(before, tokenize(t5_text.tokenizer, text, CPU), strict=True):
            assert torch.equal(first, second)


def test_padding_is_hidden_from_the_text(t5_text: T5Text) -> None:
    ids, mask = tokenize(t5_text.tokenizer, "a dog", CPU)
    length = int(mask.sum())
    alone = t5_text.model(ids[:, :length])[0]
    torch.testing.assert_close(t5_text.encode("a dog")[:length], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_and_answers_in_float32(folders: Path, dtype: torch.dtype) -> None:
    clip, t5_text = build_metaclip(folders / "clip_tiny"), build_t5(folders / "t5_tiny")
    randomize(clip.model)
    randomize(t5_text.model)

    def outputs() -> list[Tensor]:
        return [clip.encode_frames(random_frames(2)), clip.encode_text("a dog"), t5_text.encode("a dog")]

    exact = outputs()
    clip.model.to(dtype)
    t5_text.model.to(dtype)
    for half, full in zip(outputs(), exact, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).norm() < (0.01 if dtype == torch.float16 else 0.1) * full.norm()


def test_t5_in_float16_survives_a_residual_beyond_its_range(folders: Path) -> None:
    encoder = build_t5(folders / "t5_tiny")
    randomize(encoder.model)
    with torch.no_grad():
        blocks: Any = encoder.model.encoder.block
        for block in blocks:
            block.layer[-1].DenseReluDense.wo.weight.mul_(3e4)
    streams: list[Tensor] = []
    encoder.model.encoder.final_layer_norm.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    exact = encoder.encode("a dog barks")
    encoder.model.to(torch.float16)
    half = encoder.encode("a dog barks")
    assert streams[0].abs().max() > torch.finfo(torch.float16).max
    assert (half - exact).norm() < 0.01 * exact.norm()


def test_t5_keeps_one_table_of_vectors_when_it_is_converted(folders: Path) -> None:
    model = build_t5(folders / "t5_tiny").model
    randomize(model)
    model.to(torch.bfloat16)
    assert model.encoder.embed_tokens.weight.data_ptr() == model.shared.weight.data_ptr()


@pytest.mark.parametrize("build", [build_metaclip, build_t5])
def test_only_parameters_wait_for_the_checkpoint(
    folders: Path, build: Callable[[Path], MetaCLIP | T5Text]
) -> None:
    model = build(folders / ("t5_tiny" if build is build_t5 else "clip_tiny")).model
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert not model.training


def test_t5_tokenizer_from_sentencepiece_alone_equals_the_saved_one(
    folders: Path, tmp_path: Path, transformers_log: list[str]
) -> None:
    alone = tmp_path / "sentencepiece"
    alone.mkdir()
    for name in ("config.json", "spiece.model"):
        shutil.copy(folders / "t5_tiny" / name, alone)
    first = build_t5(alone).tokenizer
    saved = tmp_path / "saved"
    first.save_pretrained(saved)
    shutil.copy(folders / "t5_tiny" / "config.json", saved)
    assert (saved / "tokenizer.json").is_file()
    assert not (saved / "spiece.model").exists()
    second = build_t5(saved).tokenizer
    reference = load_file(folders / "golden.safetensors")["t5.input_ids"]
    for caption, expected in zip(json.loads((folders / "captions.json").read_text()), reference, strict=True):
        assert torch.equal(tokenize(first, caption, CPU)[0][0], expected)
        assert torch.equal(tokenize(second, caption, CPU)[0][0], expected)
    assert transformers_log == []


@pytest.mark.parametrize("kept", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_clip_tokenizer_from_either_form(
    folders: Path, tmp_path: Path, transformers_log: list[str], kept: tuple[str, ...]
) -> None:
    for name in ("config.json", *kept):
        shutil.copy(folders / "clip_tiny" / name, tmp_path)
    tokenizer = build_metaclip(tmp_path).tokenizer
    reference = load_file(folders / "golden.safetensors")["clip.input_ids"]
    for caption, expected in zip(json.loads((folders / "captions.json").read_text()), reference, strict=True):
        assert torch.equal(tokenize(tokenizer, caption, CPU)[0][0], expected)
    assert transformers_log == []


def break_folder(folder: Path, damage: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "half a config":
        (folder / "config.json").write_text('{"model_type": "cl')
    elif damage == "config without a type":
        (folder / "config.json").write_text("[]")
    elif damage == "another network":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    elif damage == "no tokenizer":
        for name in ("tokenizer.json", "merges.txt", "spiece.model"):
            (folder / name).unlink(missing_ok=True)
    elif damage == "small vocabulary":
        config.get("text_config", config)["vocab_size"] = 10
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("build", [build_metaclip, build_t5])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no config", "config.json: file not found"),
        ("half a config", "config.json: not a network description"),
        ("config without a type", "config.json: not a network description"),
        ("another network", "describes a 'bert' network, '(clip|t5)' is needed"),
        ("no tokenizer", "no tokenizer; tokenizer.json or"),
        ("small vocabulary", "tokens, the network 10; they belong to different networks"),
    ],
)
def test_a_folder_that_is_not_right_is_refused(
    folders: Path,
    tmp_path: Path,
    build: Callable[[Path], MetaCLIP | T5Text],
    damage: str,
    message: str,
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(folders / ("t5_tiny" if build is build_t5 else "clip_tiny"), folder)
    break_folder(folder, damage)
    with pytest.raises(WeightsError, match=message):
        build(folder)
