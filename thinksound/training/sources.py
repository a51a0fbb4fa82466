"""Where training clips come from: a table of files, or made scenes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol, TextIO

import torch
from torch import Tensor

from .. import __version__
from ..errors import InputError, MediaError
from ..media.decode import decode_video
from ..media.soundtrack import Soundtrack, read_sound
from ..pipeline import Pipeline
from ..rates import CLIP_FPS, MAX_DURATION_S, SYNC_FPS, clip_frame_count, sync_frame_count
from ..synthetic.make import make_scene
from ..synthetic.sound import synthesise
from ..synthetic.stream import encoder_pictures
from ..synthetic.texts import describe
from .shards import Layout

FILE_COLUMNS = ("file", "path", "video", "id")
COT_COLUMNS = ("cot", "caption_cot")
CAPTION_COLUMN = "caption"

_SHORT_S = 0.02  # half a synchronisation picture: what rounded times in a container may take away
_QUIET_END_S = 0.1  # sound may end this much earlier than the pictures
_SILENCE = 1e-4  # peak, -80 dB
_NO_MEDIA = {".csv", ".json", ".jsonl", ".txt"}


@dataclass(frozen=True)
class Clip:
    """What one training clip looks, sounds and reads like."""

    name: str
    clip_frames: Tensor | None  # uint8 (V, 224, 224, 3), 8 per second; None without video
    sync_frames: Tensor | None  # uint8 (S', 224, 224, 3), 25 per second; None without video
    waveform: Tensor  # float32 (2, A)
    caption: str
    cot: str


@dataclass(frozen=True)
class Skipped:
    """A source, or a part of one, that gives no clip."""

    name: str
    reason: str


class Source(Protocol):
    """Something that clips are made of."""

    @property
    def name(self) -> str: ...

    def identity(self) -> str:
        """What the clips depend on: where it is the same, they need not be made again."""

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        """The clips, each as long as the layout says.

        Raises:
            ThinkSoundError: the source gives none.
        """


@dataclass(frozen=True)
class MadeSource:
    """A made scene, drawn and synthesised when it is asked for."""

    split: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed:06d}"

    def identity(self) -> str:
        return json.dumps(["made", self.split, self.seed, __version__])

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        scene = make_scene(self.split, self.seed, layout.duration_s)
        clip_frames, sync_frames = encoder_pictures(scene)
        sound = Soundtrack(torch.from_numpy(synthesise(scene, layout.sample_rate)), 0.0, True)
        caption, cot = describe(scene)
        waveform = sound.part(0.0, layout.audio_samples, layout.sample_rate)
        yield Clip(
            self.name,
            # A duration that is no whole number of pictures makes the scene a little shorter.
            _cut(clip_frames, 0, clip_frame_count(layout.duration_s)),
            _cut(sync_frames, 0, sync_frame_count(layout.duration_s)),
            waveform,
            *Pipeline.check_texts(caption, cot),
        )


@dataclass(frozen=True)
class FileSource:
    """A video, or a sound without pictures, cut into clips that follow one another."""

    name: str  # as the table has it
    path: Path
    caption: str
    cot: str  # empty uses the caption

    def identity(self) -> str:
        size = self.path.stat().st_size if self.path.is_file() else None
        return json.dumps([self.name, size, self.caption, self.cot])

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        caption, cot = Pipeline.check_texts(self.caption, self.cot)
        sound = read_sound(self.path, layout.sample_rate, MAX_DURATION_S)
        start_s, clip_frames, sync_frames = sound.start_s, None, None
        if sound.has_pictures:
            decoded = decode_video(self.path, MAX_DURATION_S)
            if decoded.timeline.damaged:
                raise MediaError(f"{self.path}: damaged (some pictures are lost); copy or export it again")
            start_s, length_s, goes_on = decoded.start_s, decoded.duration_s, decoded.timeline.cut
            clip_frames, sync_frames = decoded.clip_frames, decoded.sync_frames
        else:
            length_s = sound.waveform.shape[1] / layout.sample_rate
            goes_on = length_s > MAX_DURATION_S
            length_s = min(length_s, MAX_DURATION_S)
        windows = int((length_s + _SHORT_S) / layout.duration_s)
        if not windows:
            raise MediaError(
                f"{self.path}: lasts {length_s:.2f} s; clips of {layout.duration_s:g} s are wanted"
            )
        for index in range(windows):
            # On a synchronisation picture, so that what is seen and heard stays together.
            window_s = round(index * layout.duration_s * SYNC_FPS) / SYNC_FPS
            name = f"{self.name}@{window_s:g}" if index else self.name
            waveform = sound.part(start_s + window_s, layout.audio_samples, layout.sample_rate)
            reason = _unusable(sound, waveform, start_s + window_s + layout.duration_s, layout)
            if reason:
                yield Skipped(name, reason)
                continue
            yield Clip(
                name,
                _cut(clip_frames, round(window_s * CLIP_FPS), clip_frame_count(layout.duration_s)),
                _cut(sync_frames, round(window_s * SYNC_FPS), sync_frame_count(layout.duration_s)),
                waveform,
                caption,
                cot,
            )
        if goes_on:
            yield Skipped(self.name, f"what comes after {MAX_DURATION_S:g} s is not used")


def _cut(frames: Tensor | None, start: int, count: int) -> Tensor | None:
    if frames is None:
        return None
    if start + count <= len(frames):
        return frames[start : start + count]  # no copy: a file's clips share its pictures
    return frames[torch.arange(start, start + count).clamp(max=len(frames) - 1)]


def _unusable(sound: Soundtrack, waveform: Tensor, end_s: float, layout: Layout) -> str:
    sound_end_s = sound.start_s + sound.waveform.shape[1] / layout.sample_rate
    if sound_end_s < end_s - _QUIET_END_S:
        return f"its sound ends {end_s - sound_end_s:.2f} s before the clip does"
    if not waveform.isfinite().all():
        return "its sound holds values that are not numbers"
    if waveform.abs().max() < _SILENCE:
        return "silent"
    return ""


def made_sources(split: str, seeds: Sequence[int]) -> list[MadeSource]:
    """One source per seed."""
    return [MadeSource(split, seed) for seed in seeds]


def read_table(table: Path | str, folder: Path | str) -> list[FileSource]:
    """The files that a table names, in its order, whether they are there or not.

    Args:
        table: CSV with a header, or JSON Lines. One column names the file (`FILE_COLUMNS`): its path inside
            of the folder, or its name without the ending. ``caption`` must be there; a chain of thought
            (`COT_COLUMNS`) may be.
        folder: where the files are.

    Raises:
        InputError: the table or the folder is missing; a column is missing; a row cannot be read.
    """
    table, folder = Path(table), Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the files of {table.name}")
    endings = _endings(folder)
    sources = []
    for place, row in _rows(table):
        file_column = next((name for name in FILE_COLUMNS if name in row), None)
        if file_column is None or CAPTION_COLUMN not in row:
            raise InputError(
                f"{place}: no column {CAPTION_COLUMN if file_column else ' or '.join(FILE_COLUMNS)}; "
                f"there is {', '.join(row) or 'nothing'}; a table needs the file "
                f"({', '.join(FILE_COLUMNS)}) and {CAPTION_COLUMN}, and may have {' or '.join(COT_COLUMNS)}"
            )
        cot_column = next((name for name in COT_COLUMNS if name in row), CAPTION_COLUMN)
        name = row[file_column].strip()
        if not name:
            raise InputError(f"{place}: {file_column} is empty; name a file")
        candidates = endings.get(name, [])
        path = folder / name
        if not path.is_file() and len(candidates) > 1:
            raise InputError(f"{place}: {name} may be {' or '.join(candidates)}; give the ending")
        if not path.is_file() and candidates:
            path = folder / candidates[0]
        sources.append(FileSource(name, path, row[CAPTION_COLUMN], row[cot_column]))
    if not sources:
        raise InputError(f"{table}: names no file; give one row per video or sound")
    return sources


def _endings(folder: Path) -> dict[str, list[str]]:
    """Names without ending -> the media files that have them."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() not in _NO_MEDIA:
            found.setdefault(path.stem, []).append(path.name)
    return found


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, for messages, and its texts by column."""
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    reader = readers.get(table.suffix.lower())
    if reader is None:
        raise InputError(f"{table}: not a table that is read here; give {' or '.join(readers)}")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            for number, record in reader(file):
                place = f"{table}, line {number}"
                if not isinstance(record, dict):
                    raise InputError(f"{place}: {record!r} is no row; give one object per line")
                row = {
                    str(name).strip().lower(): "" if value is None else value
                    for name, value in record.items()
                    if name
                }
                wrong = next((name for name, value in row.items() if _is_wrong(name, value)), None)
                if wrong:
                    raise InputError(f"{place}: {wrong} is {row[wrong]!r}; give a text")
                yield place, row
    except _RowError as error:
        raise InputError(f"{table}, line {error.line}: {error}") from None
    except OSError as error:
        raise InputError(f"{table}: cannot be read ({error.strerror}); check the name") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a {table.suffix[1:].upper()} file in UTF-8 ({error})") from None


def _is_wrong(name: str, value: object) -> bool:
    return name in (*FILE_COLUMNS, CAPTION_COLUMN, *COT_COLUMNS) and not isinstance(value, str)


def _csv_rows(file: TextIO) -> Iterator[tuple[int, object]]:
    # strict, so that a quote that is never closed is an error and does not swallow the rows after it.
    rows = csv.reader(file, skipinitialspace=True, strict=True)
    header: list[str] = []
    line = 1  # on which the row begins; one in quotes may go on over several
    for row in rows:
        if not any(row):
            pass  # blank, as spreadsheets leave them behind the last row
        elif not header:
            header = [name.strip().lower() for name in row]
            _check_header(header, line)
        elif any(value.strip() for value in row[len(header) :]):
            raise _RowError(
                line,
                f"{len(row)} values where the header names {len(header)} columns ({', '.join(header)}); "
                f'put a text that holds a comma in double quotes: "{header[-1]}, with a comma"',
            )
        elif CAPTION_COLUMN in header[len(row) :]:
            raise _RowError(
                line,
                f"{len(row)} value{'s' * (len(row) > 1)} where the header names {len(header)} columns "
                f"({', '.join(header)}): the {CAPTION_COLUMN} is missing",
            )
        else:
            yield line, dict(zip_longest(header, row[: len(header)], fillvalue=""))
        line = rows.line_num + 1


def _check_header(header: list[str], line: int) -> None:
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and delimiter in header[0]:
            raise _RowError(line, f"columns separated by {name}; save the table with commas (CSV, UTF-8)")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice:
        raise _RowError(line, f"two columns are named {twice}; rename or remove one")


class _RowError(Exception):
    """What is wrong with a row, before it is known which table it belongs to."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def _json_rows(file: TextIO) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue

        def row(pairs: list[tuple[str, object]], number: int = number) -> dict[str, object]:
            names = [name.strip().lower() for name, _ in pairs]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise _RowError(number, f"{twice!r} is given twice; remove one")
            return dict(pairs)

        try:
            yield number, json.loads(line, object_pairs_hook=row)
        except (ValueError, RecursionError) as error:
            raise _RowError(number, f"not a JSON object ({error}); give one object per line") from None
