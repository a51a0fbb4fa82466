"""Make ``weights/tiny``: the real classes at a small size, with seeded random values.

Nothing is trained but the two tokenizers, on sentences put together below. Every tensor is drawn
from its own generator, seeded by its file and name, at a scale that keeps activations near one;
the result is moderate coloured noise that depends on the video and the texts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import CLIPConfig, CLIPTokenizer, T5Config, T5Tokenizer

from thinksound.checkpoints.checksums import seal
from thinksound.encoders import metaclip, t5
from thinksound.encoders.pretrained import TEXT_LENGTH
from thinksound.models.mmdit import MMDiT
from thinksound.models.oobleck import AudioVAE
from thinksound.models.synchformer import Synchformer
from thinksound.presets import TINY

SEED = 0
CLIP_MERGES = 1024  # at most; the corpus runs out of pairs before
T5_PIECES = 480  # without the 100 sentinel tokens
T5_HEAD = 32  # width of one of its attention heads

SOURCES = (
    ("a dog", "barks, growls, howls, whimpers, pants, snarls, yelps"),
    ("a cat", "meows, purrs, hisses, yowls, scratches"),
    ("a small bird", "chirps, sings, tweets, whistles, flutters"),
    ("a crow", "caws, croaks, flaps, squawks"),
    ("a horse", "gallops, neighs, snorts, trots, whinnies"),
    ("a cow", "moos, chews, bellows, grazes"),
    ("a rooster", "crows, clucks, cackles, struts"),
    ("an owl", "hoots, screeches, calls"),
    ("a frog", "croaks, splashes, leaps"),
    ("a swarm of bees", "buzzes, hums, drones, swarms"),
    ("a car engine", "starts, idles, revs, roars, sputters, stalls"),
    ("an old truck", "rumbles, brakes, honks, reverses, beeps"),
    ("a motorcycle", "accelerates, revs, passes, roars, fades"),
    ("a steam train", "chugs, whistles, clatters, rattles, arrives"),
    ("a helicopter", "hovers, thumps, circles, lands"),
    ("an airplane", "takes off, flies overhead, whines, descends"),
    ("a siren", "wails, blares, approaches, rises and falls"),
    ("a bicycle", "ticks, squeaks, rolls, rings its bell"),
    ("heavy rain", "falls, patters, drums, pours, drips"),
    ("distant thunder", "rolls, rumbles, cracks, booms, echoes"),
    ("a strong wind", "blows, howls, gusts, whooshes, moans"),
    ("ocean waves", "crash, lap, surge, recede, roar"),
    ("a mountain stream", "trickles, babbles, gurgles, flows"),
    ("a camp fire", "crackles, pops, hisses, burns, roars"),
    ("a fireworks display", "explodes, bangs, fizzes, sparkles, booms"),
    ("a wooden door", "creaks, opens, slams, closes, rattles"),
    ("a metal gate", "clangs, squeaks, scrapes, swings shut"),
    ("a glass bottle", "clinks, shatters, rolls, breaks"),
    ("a plastic bag", "rustles, crinkles, crackles, tears"),
    ("a pair of boots", "crunches, stomps, scuffs, walks, runs"),
    ("a woman", "laughs, speaks, whispers, sings, sighs"),
    ("a man", "coughs, shouts, talks, snores, sneezes"),
    ("a baby", "cries, giggles, babbles, coos"),
    ("a crowd", "cheers, claps, applauds, murmurs, chants, boos"),
    ("an acoustic guitar", "strums, plucks, plays, resonates"),
    ("a grand piano", "plays, rings, sustains, fades out"),
    ("a violin", "sings, bows, screeches, plays a slow melody"),
    ("a drum kit", "pounds, beats, rolls, crashes, taps"),
    ("a church bell", "tolls, rings, chimes, resonates"),
    ("a telephone", "rings, vibrates, beeps, clicks"),
    ("a keyboard", "clacks, clicks, taps, types"),
    ("a kitchen knife", "chops, slices, scrapes, cuts"),
    ("a frying pan", "sizzles, clatters, spits, bangs"),
    ("a kettle", "boils, whistles, bubbles, steams"),
    ("a vacuum cleaner", "hums, whirs, roars, drones, switches off"),
    ("a chainsaw", "buzzes, screams, starts, cuts through wood"),
    ("a hammer", "knocks, bangs, strikes a nail, taps"),
    ("a tennis ball", "bounces, hits the racket, thuds"),
    ("a skateboard", "rolls, grinds, lands, clacks"),
    ("a ticking clock", "ticks, strikes, chimes, stops"),
)
PLACES = [
    "in the distance",
    "on a quiet street",
    "in a large empty hall",
    "inside a small room",
    "under a bridge",
    "in the forest",
    "near the river",
    "behind a closed window",
    "on wet gravel",
    "over dry leaves",
    "across a wooden floor",
    "at night",
    "in the early morning",
    "on a busy road",
    "at the beach",
    "in a crowded market",
    "on a metal roof",
    "down the stairs",
    "in a workshop",
    "on fresh snow",
    "along the railway",
    "in an open field",
    "by the harbour",
    "inside a tunnel",
]
MANNERS = [
    "softly",
    "loudly",
    "sharply",
    "slowly",
    "quickly",
    "again and again",
    "with a long echo",
    "in a steady rhythm",
    "then stops",
    "with a low rumble",
    "with a bright ringing tone",
    "and fades away",
    "in short bursts",
    "close to the microphone",
    "faintly",
    "suddenly",
    "while people talk in the background",
    "as the wind picks up",
    "followed by silence",
]
FRAMES = (
    "{what} {does} {where} {how}.",
    "{does} {how}: {what} {where}",
    "Generate the sound of {what} that {does} {where}, {how}.",
    "Begin with {what} {where}; it {does} {how}, then add quiet background ambience.",
    "The scene shows {what}. Audio should match when {what} {does}, {how}, with no music or speech.",
    "Keep {what} clear and separate from the other layers, {how}, with natural reverb {where}.",
)
# The VAE's strided convolutions, each of which would halve the amplitude.
RATE_CHANGE = re.compile(r"(encoder\.layers\.\d+\.layers\.4|decoder\.layers\.\d+\.layers\.1)\.weight_g")
# Every printable ASCII character, so that plain text never becomes "unknown".
CHARACTERS = "".join(map(chr, range(33, 127)))


def sentences() -> Iterator[str]:
    """The corpus: every source with every verb, in changing places, manners and frames."""
    count = 0
    for what, verbs in SOURCES:
        for does in verbs.split(", "):
            for frame in FRAMES:
                where, how = PLACES[count * 7 % len(PLACES)], MANNERS[count * 5 % len(MANNERS)]
                yield frame.format(what=what, does=does, where=where, how=how)
                count += 1
    yield from CHARACTERS


def train_clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding laid out as CLIP's: bytes, bytes at a word's end, merges, the two specials."""
    alphabet = sorted(ByteLevel.alphabet())
    letters = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    plain = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=len(letters) + CLIP_MERGES,
        special_tokens=letters,  # numbered before training: ties between merges are broken by number
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(sentences(), trainer)
    merges = [(left, right) for left, right in json.loads(trained.to_str())["model"]["merges"]]
    pieces = [*letters, *(left + right for left, right in merges), "<|startoftext|>", "<|endoftext|>"]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=numbers, merges=merges)


def train_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A unigram model with T5's normalisation and special tokens, trained by sentencepiece."""
    file = folder / "spiece.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_prefix=file.with_suffix(""),
        model_type="unigram",
        vocab_size=T5_PIECES,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    file.unlink()
    file.with_suffix(".vocab").unlink()
    return tokenizer


def clip_description(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    width = TINY.mmdit.clip_text_dim
    tower = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "hidden_act": "quick_gelu",
    }
    return {
        "model_type": "clip",
        "projection_dim": TINY.mmdit.clip_dim,
        "text_config": tower
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "vision_config": tower | {"image_size": 224, "patch_size": 32},
    }


def t5_description(tokenizer: T5Tokenizer) -> dict[str, Any]:
    width = TINY.mmdit.text_dim
    return {
        "model_type": "t5",
        "d_model": width,
        "d_kv": T5_HEAD,
        "d_ff": 2 * width,
        "num_heads": 4,
        "num_layers": 2,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": False,
    }


def draw(file: str, name: str, shape: torch.Size) -> torch.Tensor:
    """Random values of one tensor, at the scale that its name asks for."""
    seed = zlib.crc32(f"{SEED}/{file}/{name}".encode())
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape), dtype=np.float32)
    value = torch.as_tensor(normal)
    fan_in = math.prod(shape[1:])
    if name.endswith("weight_g"):
        return (0.5 + 0.1 * value.abs()) * (2.0 if RATE_CHANGE.fullmatch(name) else 1.0)
    if name.endswith((".alpha", ".beta")):
        return 0.1 * value
    if len(shape) == 1:
        return 1.0 + 0.1 * value if name.endswith("weight") else 0.05 * value
    if name.endswith(("shared.weight", "token_embedding.weight", "position_embedding.weight")):
        return value
    if name.endswith("SelfAttention.q.weight"):
        # T5 does not scale its scores by the width of a head.
        return value / math.sqrt(fan_in * T5_HEAD)
    if name.endswith(("weight", "weight_v")):
        return value / math.sqrt(fan_in)
    return 0.3 * value


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", newline="\n")


def write_network(folder: Path, file: str, network: nn.Module) -> None:
    """Write random values under the network's own names; its own values do not matter."""
    tensors = {name: draw(file, name, value.shape) for name, value in network.named_parameters()}
    (folder / file).write_bytes(save(tensors))


def make(folder: Path) -> None:
    """Write every file of the tiny preset into ``folder``."""
    for name in ("metaclip", "t5"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_network(folder, "mmdit.safetensors", MMDiT(TINY.mmdit))
    write_network(folder, "vae.safetensors", AudioVAE(TINY.vae))
    write_network(folder, "synchformer.safetensors", Synchformer(TINY.synchformer))

    tokenizer = train_clip_tokenizer()
    description = clip_description(tokenizer)
    write_json(folder / "metaclip" / "config.json", description)
    write_json(
        folder / "metaclip" / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": TEXT_LENGTH},
    )
    tokenizer.backend_tokenizer.save(str(folder / "metaclip" / "tokenizer.json"))
    write_network(folder, "metaclip/model.safetensors", metaclip.build_network(CLIPConfig(**description)))

    tokenizer = train_t5_tokenizer(folder / "t5")
    description = t5_description(tokenizer)
    write_json(folder / "t5" / "config.json", description)
    write_json(
        folder / "t5" / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512}
    )
    tokenizer.backend_tokenizer.save(str(folder / "t5" / "tokenizer.json"))
    write_network(folder, "t5/model.safetensors", t5.build_network(T5Config(**description)))

    seal(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the bundled tiny weights.")
    default = Path(__file__).resolve().parents[1] / "weights" / "tiny"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="default: weights/tiny")
    make(parser.parse_args().folder)
