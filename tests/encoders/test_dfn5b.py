"""MMAudio's CLIP: the published tensors, reference outputs, texts of any kind, folders that are not right."""

from __future__ import annotations

import ast
import copy
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import SimpleTokenizer
from parity.mmaudio.procedural_mmaudio import picture
from support.dfn5b_folder import SMALL_DFN5B, write_dfn5b
from support.mmaudio_reference import FOLDER, filled, manifest, mmaudio_golden, seeded_tensors, shapes_of
from support.reference import assert_close, relative_l2
from torch import Tensor

import thinksound
from thinksound import WeightsError
from thinksound.checkpoints import load
from thinksound.encoders.dfn5b import (
    CONFIG_FILE,
    DFN5B,
    PUBLISHED_CONFIG,
    Tokenizer,
    build_dfn5b,
    build_network,
)
from thinksound.encoders.reading import notes_on

PUBLISHED_FILE = "open_clip_pytorch_model.bin"


def seeded(config: dict[str, Any]) -> DFN5B:
    network = build_network(config)
    return DFN5B(filled(network, seeded_tensors(shapes_of(network.state_dict()))), Tokenizer())


def random_frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 384, 384, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def small() -> DFN5B:
    return seeded(SMALL_DFN5B)


@pytest.fixture(scope="module")
def tokenizer(small: DFN5B) -> Tokenizer:
    return small.tokenizer


def test_names_and_shapes_are_the_published_ones() -> None:
    about = json.loads((FOLDER / "manifest" / f"{PUBLISHED_FILE}.json").read_text())
    assert about["config"] == PUBLISHED_CONFIG
    network = build_network(PUBLISHED_CONFIG)
    assert shapes_of(network.state_dict()) == manifest(PUBLISHED_FILE)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert not any(buffer.is_meta for buffer in network.buffers())
    assert not network.training


def check_golden(name: str) -> dict[str, float]:
    """Compare with a golden file; gives the relative error of frames and of texts."""
    tensors, about = mmaudio_golden(name)
    clip = seeded(json.loads(about["config"]))
    frames = torch.stack(
        [
            torch.from_numpy(picture(f"{about['tag']}{index}", 384, 384))
            for index in range(len(tensors["out.image"]))
        ]
    )
    assert [int(frames.sum(dtype=torch.int64))] == json.loads(about["input_sums"])["pictures"]
    captions = json.loads(about["captions"])
    ids = torch.cat([clip.tokenizer(caption) for caption in captions])
    assert torch.equal(ids, tensors["in.tokens"].long())
    rows = torch.stack([clip.encode_text(caption) for caption in captions])
    results = {"frames": (clip.encode_frames(frames), "out.image"), "texts": (rows, "out.text")}
    for got, key in results.values():
        assert_close(got, tensors[key])
    return {what: relative_l2(got, tensors[key]) for what, (got, key) in results.items()}


def test_frames_and_texts_equal_the_reference() -> None:
    check_golden("clip_tiny")


@pytest.mark.parity
def test_full_size() -> None:
    for what, error in check_golden("clip_full").items():
        print(f"PARITY MMAudio's CLIP, {what}: {error:.1e}")


@pytest.mark.parametrize("pickled", [False, True])
def test_a_published_folder_is_read_and_filled(tmp_path: Path, small: DFN5B, pickled: bool) -> None:
    folder = write_dfn5b(tmp_path / "clip", dtype=torch.float32, pickled=pickled)
    clip = build_dfn5b(folder)
    weights = folder / (PUBLISHED_FILE if pickled else "open_clip_model.safetensors")
    load.load_file(clip.model, weights, "dfn5b", torch.float32)
    assert torch.equal(clip.encode_text("a dog barks"), small.encode_text("a dog barks"))
    assert torch.equal(clip.encode_frames(random_frames(1)), small.encode_frames(random_frames(1)))


def test_a_description_may_stand_alone(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(SMALL_DFN5B))
    assert shapes_of(build_dfn5b(tmp_path).model.state_dict()) == shapes_of(
        build_network(SMALL_DFN5B).state_dict()
    )


def test_the_small_folder_is_small(tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in write_dfn5b(tmp_path).iterdir()) < 2_000_000


def test_frame_features_do_not_depend_on_the_batch_and_have_length_one(small: DFN5B) -> None:
    frames = random_frames(5)
    calls: list[tuple[int, int]] = []
    together = small.encode_frames(frames, batch_size=5)
    by_two = small.encode_frames(frames, batch_size=2, progress=lambda *call: calls.append(call))
    assert together.shape == (5, 48)
    assert calls == [(2, 5), (4, 5), (5, 5)]
    torch.testing.assert_close(by_two, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(5))


def test_the_last_rows_and_columns_are_cut_where_the_network_is_smaller() -> None:
    config = copy.deepcopy(SMALL_DFN5B)
    config["vision_cfg"] |= {"image_size": 378, "patch_size": 63}
    clip = seeded(config)
    frames = random_frames(1)
    features = clip.encode_frames(frames)
    for edge in (slice(378, None), slice(377, 378)):
        changed = frames.clone()
        changed[:, edge] = changed[:, :, edge] = 0
        assert torch.equal(clip.encode_frames(changed), features) == (edge.start == 378)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_and_answers_in_float32(small: DFN5B, dtype: torch.dtype) -> None:
    half = seeded(SMALL_DFN5B)
    half.model.to(dtype)
    encoded: list[Callable[[DFN5B], Tensor]] = [
        lambda clip: clip.encode_frames(random_frames(2)),
        lambda clip: clip.encode_text("a dog barks"),
    ]
    for encode in encoded:
        got = encode(half)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.norm(dim=-1), torch.ones(len(got)))
        assert relative_l2(got, encode(small)) < (0.01 if dtype == torch.float16 else 0.1)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("   \n\t ", id="blank"),
        pytest.param("\x00\x1b[31m\u202e", id="control characters"),
        pytest.param("a\udc80\ud800", id="halves of characters"),
        pytest.param("雨が屋根に降る", id="japanese"),
        pytest.param("dog " * 25_000, id="100,000 characters in words"),
        pytest.param(
            "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=30_000)), id="one long word"
        ),
        pytest.param("😀" * 100_000, id="100,000 emoji"),
        pytest.param("&amp;" * 20_000, id="20,000 entities"),
        pytest.param("<start_of_text><end_of_text>", id="special tokens spelled out"),
    ],
)
def test_any_text_gives_77_rows_of_length_one_in_no_time(small: DFN5B, text: str) -> None:
    started = time.process_time()
    rows = small.encode_text(text)
    reading = small.read(text)
    assert time.process_time() - started < 5
    assert rows.shape == (77, 16)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(77))
    assert reading.read <= reading.total


@pytest.mark.parametrize(
    "part", ["a dog barks at the rain ", "雨が屋根に降る", "😀🔥", "qzjxkvwp", "&amp; \n"]
)
def test_long_texts_have_the_tokens_that_open_clip_gives(tokenizer: Tokenizer, part: str) -> None:
    text = part * 500
    ids = tokenizer(text)
    assert ids.shape == (1, 77) and ids[0, 0] == 49406 and ids[0, -1] == 49407
    assert torch.equal(ids, SimpleTokenizer()([text]))


def test_the_words_of_a_request_are_not_kept(tokenizer: Tokenizer) -> None:
    words = " ".join(f"xq{number}z" for number in range(200))
    before = len(tokenizer._tokenizer.cache)
    tokenizer(words)
    tokenizer.fits(words)
    assert len(tokenizer._tokenizer.cache) == before


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("dog bounces in the rain " * 400, "words"),
        ("caf\u00e9 &amp; \u201crain\u201d, " * 40, "words"),
        ("雨が 屋根に降る" * 30, "characters"),
        ("汽车驶过潮湿的街道" * 30, "characters"),
        ("dogs" * 200, "characters"),
        ("🔥" * 400, "characters"),
    ],
    ids=lambda value: value[:24],
)
def test_what_is_read_fits_exactly(small: DFN5B, text: str, unit: str) -> None:
    reading = small.read(text)
    assert reading.unit == unit and 0 < reading.read < reading.total
    ends = [index + 1 for index in range(len(text)) if not text[index].isspace()]
    if unit == "words":
        ends = [end for end in ends if end == len(text) or text[end].isspace()]
    assert reading.total == len(ends)
    assert small.tokenizer.fits(text[: ends[reading.read - 1]])
    assert not small.tokenizer.fits(text[: ends[reading.read]])


@pytest.mark.parametrize("text", ["", "a dog barks", "Топор бьёт дерево", "雨が屋根に降る", "🔥 dog"])
def test_short_texts_in_any_script_are_read_whole(small: DFN5B, text: str) -> None:
    reading = small.read(text)
    assert reading.read == reading.total
    assert notes_on("caption", "CLIP", reading) == []


def test_a_note_says_how_much_is_read(small: DFN5B) -> None:
    assert notes_on("caption", "CLIP", small.read("dog " * 100)) == [
        "caption: CLIP reads only the first 75 of 100 words (77 tokens at most); put what matters first"
    ]


def without(config: dict[str, Any], part: str, key: str) -> dict[str, Any]:
    return config | {part: {name: value for name, value in config[part].items() if name != key}}


def with_entry(part: str, **entries: object) -> dict[str, Any]:
    return SMALL_DFN5B | {part: SMALL_DFN5B[part] | entries}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "file not found; run `thinksound weights download`"),
        ("{", "not a network description"),
        ([], "not a network description"),
        ({}, "the description lacks 'embed_dim'"),
        ({"model_cfg": []}, "the description is a list, not a dict"),
        (SMALL_DFN5B | {"custom_text": True}, "the description names 'custom_text'"),
        (SMALL_DFN5B | {"quick_gelu": 1}, "quick_gelu is a int, not a bool"),
        (SMALL_DFN5B | {"embed_dim": 1 << 40}, "embed_dim is 1.1e\\+12"),
        (with_entry("vision_cfg", timm_model_name="vit_huge"), "vision_cfg names 'timm_model_name'"),
        (with_entry("text_cfg", hf_model_name="roberta-base"), "text_cfg names 'hf_model_name'"),
        (without(SMALL_DFN5B, "vision_cfg", "head_width"), "vision_cfg lacks 'head_width'"),
        (with_entry("vision_cfg", layers=[3, 4, 6, 3]), "layers is a list, not a int"),
        (with_entry("vision_cfg", layers=0), "layers is 0"),
        (with_entry("vision_cfg", layers=-2), "layers is -2"),
        (with_entry("vision_cfg", layers=100_000), "layers is 1e\\+05, 1000 is the most"),
        (with_entry("vision_cfg", image_size=448), "image_size is 448, from 24 to 384 is possible"),
        (with_entry("vision_cfg", patch_size=400), "image_size is 384, from 400 to 384 is possible"),
        (with_entry("vision_cfg", head_width=32), "width 48 is no multiple of head_width 32"),
        (with_entry("text_cfg", heads=3), "width 16 is no multiple of heads 3"),
        (with_entry("text_cfg", context_length=154), "context_length is 154, 77 is needed"),
        (with_entry("text_cfg", vocab_size=1000), "vocab_size is 1000, 49408 is needed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_that_is_not_right_is_refused(tmp_path: Path, config: object, message: str) -> None:
    if config is not None:
        (tmp_path / CONFIG_FILE).write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(WeightsError, match=message) as caught:
        build_dfn5b(tmp_path)
    assert str(tmp_path / CONFIG_FILE) in str(caught.value)


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened a connection")

    folder = write_dfn5b(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_dfn5b(folder).tokenizer("a dog barks")


def test_open_clip_is_imported_by_this_encoder_alone() -> None:
    package = Path(thinksound.__file__).parent
    users = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("open_clip", "timm"))
        or (
            isinstance(node, ast.Import)
            and {a.name.split(".")[0] for a in node.names} & {"open_clip", "timm"}
        )
    }
    assert users == {"dfn5b.py"}


@pytest.mark.slow
def test_the_pipeline_of_thinksound_loads_neither_open_clip_nor_timm() -> None:
    code = "import sys, thinksound.pipeline, thinksound.families.tiny; "
    code += "print({'open_clip', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
