"""The tiny preset: the bundled files are complete and small; untrained ones give moderate noise."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path

import pytest
import torch
from support.networks import load
from support.paths import ROOT, WEIGHTS
from torch import Tensor

from thinksound.checkpoints.load import network_of
from thinksound.encoders.metaclip import MetaCLIP
from thinksound.encoders.motion import encode_motion
from thinksound.encoders.pretrained import TEXT_LENGTH, tokenize
from thinksound.encoders.t5 import T5Text
from thinksound.families.find import family_of
from thinksound.families.tiny import family
from thinksound.models.mmdit import MMDiT
from thinksound.models.motion import MotionEncoder
from thinksound.models.spectrogram_vae import SpectrogramVAE
from thinksound.presets import TINY
from thinksound.sampling.noise import draw_noise
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.seeds import MEASURED, SPLITS
from thinksound.synthetic.texts import describe
from thinksound.training.tiny.untrained import make_tiny

pytestmark = pytest.mark.slow

BUNDLED = WEIGHTS / "tiny"
CPU = torch.device("cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with the tiny preset before any training."""
    folder = tmp_path_factory.mktemp("weights")
    make_tiny(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def metaclip(weights: Path) -> MetaCLIP:
    metaclip: MetaCLIP = load(weights, "metaclip")
    return metaclip


@pytest.fixture(scope="module")
def t5(weights: Path) -> T5Text:
    t5: T5Text = load(weights, "t5")
    return t5


@pytest.fixture(scope="module")
def synchformer(weights: Path) -> MotionEncoder:
    synchformer: MotionEncoder = load(weights, "synchformer")
    return synchformer


@pytest.fixture(scope="module")
def mmdit(weights: Path) -> MMDiT:
    mmdit: MMDiT = load(weights, "dit")
    return mmdit


@pytest.fixture(scope="module")
def vae(weights: Path) -> SpectrogramVAE:
    vae: SpectrogramVAE = load(weights, "vae")
    return vae


def test_the_same_files_are_made_again(weights: Path, tmp_path: Path) -> None:
    make_tiny(tmp_path)
    assert contents(tmp_path) == contents(weights / "tiny")


def test_the_bundled_tokenizers_and_descriptions_are_the_made_ones(weights: Path) -> None:
    made, bundled = contents(weights / "tiny"), contents(BUNDLED)
    assert made.keys() == bundled.keys()
    kept = [name for name in made if name.endswith(".json") and name != "checksums.json"]
    assert len(kept) == 6
    assert [name for name in kept if made[name] != bundled[name]] == []


@pytest.mark.parametrize("which", ["bundled", "made"])
def test_checksums_cover_every_file(which: str, weights: Path) -> None:
    files = contents(BUNDLED if which == "bundled" else weights / "tiny")
    table = json.loads(files.pop("checksums.json"))
    assert table == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_all_files_together_are_small() -> None:
    assert sum(map(len, contents(BUNDLED).values())) < 25e6


def test_every_bundled_value_is_loaded_finite_float32_and_counted_in_the_readme() -> None:
    built = {name: load(WEIGHTS, name) for name in TINY.networks}
    assert len(built) == 5
    for network in map(network_of, built.values()):
        for name, value in network.state_dict().items():
            assert value.dtype == torch.float32, name
            assert value.isfinite().all(), name
    family = family_of(TINY)
    for name, network in built.items():  # of the VAE those of the decoder
        used = sum(value.numel() for value in family.placed(name, network).parameters())
        assert used == TINY.networks[name].parameters
    millions = f"{TINY.parameters / 1e6:.1f}"
    assert f"| {millions} million | bundled |" in (ROOT / "README.md").read_text()


def test_plain_text_is_known_to_both_tokenizers(metaclip: MetaCLIP, t5: T5Text) -> None:
    for character in string.ascii_letters + string.digits + string.punctuation:
        ids, mask = tokenize(metaclip.tokenizer, character, CPU)
        inside = ids[mask.bool()][1:-1]
        assert len(inside) > 0
        assert metaclip.tokenizer.unk_token_id not in inside
        ids, mask = tokenize(t5.tokenizer, character, CPU)
        assert t5.tokenizer.unk_token_id not in ids[mask.bool()]


def test_words_of_sound_are_single_tokens(metaclip: MetaCLIP, t5: T5Text) -> None:
    text = "a dog barks loudly"
    for tokenizer, specials in ((metaclip.tokenizer, 2), (t5.tokenizer, 1)):
        _, mask = tokenize(tokenizer, text, CPU)
        assert mask.sum() == 4 + specials
        again = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        assert isinstance(again, str) and again.strip() == text


def test_texts_of_made_clips_fit_into_the_tokens_that_are_read(metaclip: MetaCLIP, t5: T5Text) -> None:
    texts = [describe(make_scene(split, seed)) for split in SPLITS for seed in MEASURED[:150]]
    captions = [len(metaclip.tokenizer(caption)["input_ids"]) for caption, _ in texts]
    descriptions = [len(t5.tokenizer(cot)["input_ids"]) for _, cot in texts]
    assert max(captions) <= TEXT_LENGTH
    assert sum(length <= TEXT_LENGTH for length in descriptions) >= 297


def test_any_bytes_are_known_to_the_caption_tokenizer(metaclip: MetaCLIP) -> None:
    ids, mask = tokenize(metaclip.tokenizer, "😀 naïve 雨", CPU)
    assert metaclip.tokenizer.unk_token_id not in ids[mask.bool()][1:-1]


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """Two clips of 0.64 s: a moving gradient and a moving chessboard, ``(16, 224, 224, 3)`` each."""
    time, y, x = torch.meshgrid(torch.arange(16), torch.arange(224), torch.arange(224), indexing="ij")
    gradient = torch.stack([x + 4 * time, y + 2 * time, (x + y) // 2], dim=-1) % 256
    chessboard = 255 * ((x + 8 * time) // 28 % 2 ^ y // 28 % 2)[..., None].expand(-1, -1, -1, 3)
    return gradient.to(torch.uint8), chessboard.to(torch.uint8)


@pytest.fixture(scope="module")
def latents(
    metaclip: MetaCLIP,
    t5: T5Text,
    synchformer: MotionEncoder,
    mmdit: MMDiT,
    pictures: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Latents of a request, and of the same request with one input changed."""

    def generate(clip: int = 0, caption: str = "a dog barks", cot: str = "It barks twice.") -> Tensor:
        features = (
            metaclip.encode_frames(pictures[clip]),
            encode_motion(synchformer.vfeat_extractor, pictures[clip]),
            metaclip.encode_text(caption),
            t5.encode(cot),
        )
        for part in features:
            assert 0.5 < part.std() < 2
        with torch.inference_mode():
            batch = [part[None] for part in features]
            return family(TINY).follow(mmdit, batch, draw_noise(0, 32, 40), 10, 5.0, lambda _: None)

    return {
        "first": generate(),
        "video": generate(clip=1),
        "caption": generate(caption="heavy rain"),
        "description": generate(cot="Rain patters on a metal roof."),
    }


@pytest.mark.parametrize("changed", ["video", "caption", "description"])
def test_the_sound_depends_on_every_input(latents: dict[str, Tensor], changed: str) -> None:
    first = latents["first"]
    assert (latents[changed] - first).norm() > 0.05 * first.norm()


def test_the_sound_is_a_moderate_noise(vae: SpectrogramVAE, latents: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        waveform = vae.decode(latents["first"])[0]
    assert waveform.shape == (2, 40 * 512)
    assert 0.1 < waveform.std() < 2
    assert waveform.abs().max() < 20 * waveform.std()
