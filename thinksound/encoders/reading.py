"""Finds which part of a text an encoder reads, so that the user can be told.

An encoder silently cuts a text at 77 tokens. T5's tokenizer also turns characters that are not in its
vocabulary, such as other scripts, into an "unknown" token that carries no meaning.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .pretrained import TEXT_LENGTH

# Scripts without spaces between words: each character counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
)
_CHARACTER = re.compile(rf"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_SHOWN, _SHOWN_LENGTH = 3, 40  # unreadable parts in a note, and characters of each


@dataclass(frozen=True)
class Reading:
    """How much of one text a tokenizer keeps."""

    read: int  # whole units within the tokens that are kept
    total: int  # units of the text
    unit: str  # "words" or "characters"
    unreadable: tuple[str, ...]  # parts that become unknown tokens
    understood: bool  # some of it is known, or nothing is unreadable


def read_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Reading:
    """Returns how much of ``text`` is read, by the characters that each token covers."""
    # Padding and truncation must be those of `tokenize`: the tokenizer stores them, and requests share it.
    pieces = tokenizer(
        text,
        max_length=TEXT_LENGTH,
        padding="max_length",
        truncation=True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    kept, *dropped = (
        [
            (token, span)
            for token, span, special in zip(ids, spans, specials, strict=True)
            # An unknown token may count as special; added special tokens cover no characters.
            if not special or span[0] < span[1]
        ]
        for ids, spans, specials in zip(
            pieces["input_ids"], pieces["offset_mapping"], pieces["special_tokens_mask"], strict=True
        )
    )
    end = dropped[0][0][1][0] if dropped else len(text)  # start of the first token that is not read
    words, unit = _units(text)
    unknown: list[tuple[int, int]] = []
    known: list[tuple[int, int]] = []
    for token, (start, stop) in kept:
        # CLIP's unknown token is also its end token; its vocabulary has every byte, so nothing is unknown.
        is_unknown = token == tokenizer.unk_token_id != tokenizer.eos_token_id
        (unknown if is_unknown else known).append((start, stop))
    unreadable = tuple(part for part in _joined(text, unknown) if _says_something(part))
    covered = {index for start, stop in unknown for index in range(start, stop)}
    understood = any(
        index not in covered and _says_something(text[index])
        for start, stop in known
        for index in range(start, stop)
    )
    return Reading(
        read=sum(stop <= end for _, stop in words),
        total=len(words),
        unit=unit,
        unreadable=unreadable,
        understood=understood or not unreadable,
    )


def read_beginning(text: str, fits: Callable[[str], bool]) -> Reading:
    """Returns how many words or characters at the start of ``text`` fit, by bisection with ``fits``.

    Used for a tokenizer without unknown tokens that does not tell which characters a token covers.
    """
    words, unit = _units(text)
    read = len(words)
    if not fits(text):
        read, too_many = 0, len(words)
        while too_many - read > 1:
            middle = (read + too_many) // 2
            if fits(text[: words[middle - 1][1]]):
                read = middle
            else:
                too_many = middle
    return Reading(read, len(words), unit, unreadable=(), understood=True)


def notes_on(name: str, encoder: str, reading: Reading) -> list[str]:
    """Returns notes for the user if ``reading`` is not all of the text called ``name``."""
    notes = []
    if reading.read < reading.total:
        notes.append(
            f"{name}: {encoder} reads only the first {reading.read:,} of {reading.total:,} {reading.unit} "
            f"({TEXT_LENGTH} tokens at most); put what matters first"
        )
    if reading.unreadable:
        parts = ", ".join(f'"{_short(part)}"' for part in reading.unreadable[:_SHOWN])
        if len(reading.unreadable) > _SHOWN:
            parts += f" and {len(reading.unreadable) - _SHOWN} more"
        what = f"cannot read {parts}" if reading.understood else f"can read nothing of it ({parts})"
        notes.append(f"{name}: {encoder} {what}; describe the sound in English")
    return notes


def _units(text: str) -> tuple[list[tuple[int, int]], str]:
    """Returns the spans of a text's words, or of its characters if it is one long word, and their unit."""
    words = [match.span() for match in _WORD.finditer(text)]
    if len(words) == 1:  # such as a row of emoji
        return [match.span() for match in re.finditer(r"\S", text)], "characters"
    return words, "characters" if 2 * len(_CHARACTER.findall(text)) > len(words) else "words"


def _joined(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """Returns the parts of a text at these spans; parts separated only by spaces are joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return [text[start:stop].strip() for start, stop in joined]


def _says_something(part: str) -> bool:
    """Whether ``part`` has a letter, a digit or a symbol such as an emoji, not just punctuation."""
    return any(character.isalnum() or unicodedata.category(character) == "So" for character in part)


def _short(part: str) -> str:
    return part if len(part) <= _SHOWN_LENGTH else f"{part[: _SHOWN_LENGTH - 1]}…"
