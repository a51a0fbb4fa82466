"""The tokenizers of the tiny preset: built like CLIP's and T5's, trained on the sentences below.

The sentences name everyday sounds, so that plain English is split into words, and describe synthetic clips
of the training seeds, so that the text of such a clip fits into the 77 tokens that an encoder reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, T5Tokenizer

from ...synthetic.make import make_scene
from ...synthetic.seeds import SPLITS, TRAINING
from ...synthetic.texts import describe

CLIP_MERGES = 1024
T5_PIECES = 800  # without the 100 sentinel tokens
MADE_SCENES = 750  # of each split; two texts each

_SOURCES = (
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
_PLACES = [
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
_MANNERS = [
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
_FRAMES = (
    "{what} {does} {where} {how}.",
    "{does} {how}: {what} {where}",
    "Generate the sound of {what} that {does} {where}, {how}.",
    "Begin with {what} {where}; it {does} {how}, then add quiet background ambience.",
    "The scene shows {what}. Audio should match when {what} {does}, {how}, with no music or speech.",
    "Keep {what} clear and separate from the other layers, {how}, with natural reverb {where}.",
)
# Every printable ASCII character, so that plain text has no unknown tokens.
_CHARACTERS = "".join(map(chr, range(33, 127)))


def sentences() -> Iterator[str]:
    """The corpus: every source with every verb in each of `_FRAMES`, texts of clips, single characters."""
    count = 0
    for what, verbs in _SOURCES:
        for does in verbs.split(", "):
            for frame in _FRAMES:
                where, how = _PLACES[count * 7 % len(_PLACES)], _MANNERS[count * 5 % len(_MANNERS)]
                yield frame.format(what=what, does=does, where=where, how=how)
                count += 1
    for seed in TRAINING[:MADE_SCENES]:
        for split in SPLITS:
            yield from describe(make_scene(split, seed))
    yield from _CHARACTERS


def train_clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding with CLIP's layout: bytes, bytes that end a word, merges, two special tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    letters = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    plain = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=len(letters) + CLIP_MERGES,
        special_tokens=letters,  # fixed numbers, because training breaks ties between merges by number
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(sentences(), trainer)
    # Pairs, as the BPE model expects them, although transformers annotates strings.
    merges: Any = [(left, right) for left, right in json.loads(trained.to_str())["model"]["merges"]]
    pieces = [*letters, *(left + right for left, right in merges), "<|startoftext|>", "<|endoftext|>"]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=numbers, merges=merges)


def train_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A unigram model with T5's normalisation and special tokens; ``folder`` takes temporary files."""
    corpus = list(sentences())
    # A word is proposed as a piece only if a sentence ends after it or different characters follow.
    corpus += sorted({word for sentence in corpus for word in sentence.split()})
    file = folder / "spiece.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=file.with_suffix(""),
        model_type="unigram",
        vocab_size=T5_PIECES,
        character_coverage=1.0,
        split_by_unicode_script=False,  # "floor." may be one piece, which saves a fifth of the tokens
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
