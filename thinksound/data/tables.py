"""Caption tables in CSV or JSON Lines: the file and the texts of each row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from ..errors import InputError
from .sources import FileSource

FILE_COLUMNS = ("file", "path", "video", "id")
COT_COLUMNS = ("cot", "caption_cot")
CAPTION_COLUMN = "caption"
_NO_MEDIA = {".csv", ".json", ".jsonl", ".txt"}


def read_table(table: Path | str, folder: Path | str) -> list[FileSource]:
    """Read the files that a table names, in its order, whether or not they exist.

    Args:
        table: CSV with a header, or JSON Lines. One column names the file (`FILE_COLUMNS`): its path inside
            the folder, or its name without the ending. ``caption`` is required; a chain of thought
            (`COT_COLUMNS`) is optional.
        folder: where the files are.

    Raises:
        InputError: the table or the folder is missing, the table lacks a column or names no file, a row
            cannot be read, or several files have the name in a row.
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
    """Name without its ending -> the media files with that name."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() not in _NO_MEDIA:
            found.setdefault(path.stem, []).append(path.name)
    return found


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row: its place in the table, for messages, and its texts by column."""
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
    line = 1  # where the row begins; a quoted value may span several lines
    for row in rows:
        if not any(row):
            pass  # blank, as spreadsheets leave them after the last row
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
    """An error in a row; the caller adds the name of the table."""

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
