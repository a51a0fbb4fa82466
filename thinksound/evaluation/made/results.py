"""Finished rows in a folder, from which an interrupted evaluation resumes, and their summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...media.files import make_folder, whole_file
from ...synthetic.seeds import SPLITS
from .options import QUIET
from .quiet import MEASURES as QUIET_MEASURES
from .quiet import QuietScores, summarise_quiet
from .rows import Row
from .scores import ClipScores, summarise
from .table import markdown_table

RESULTS, TABLE, ROWS = "results.json", "table.md", "rows"


class Results:
    """The finished rows in an output folder.

    Raises:
        InputError: the folder holds rows of other settings, or a damaged file.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
        self._folder, self._rows, self._settings = folder, rows, dict(settings)
        self._quiet = folder / ROWS / f"{QUIET}.json"
        make_folder(folder / ROWS)
        previous = self._previous()
        changed = [name for name, value in self._settings.items() if previous.get(name, value) != value]
        if changed:
            name = changed[0]
            raise InputError(
                f"{folder}: holds results of other settings ({name}: {_short(previous[name])}, now "
                f"{_short(self._settings[name])}); choose another folder"
            )
        self.write()

    def _previous(self) -> dict[str, Any]:
        path = self._folder / RESULTS
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"{path}: not results of an evaluation ({error!r}); choose another folder"
            ) from None

    def _path(self, split: str, row: Row) -> Path:
        return self._folder / ROWS / f"{split}-{row.key}.json"

    def has(self, split: str, row: Row) -> bool:
        """Whether a row is finished."""
        return self._path(split, row).is_file()

    def add(self, split: str, row: Row, clips: Sequence[ClipScores]) -> None:
        """Write a finished row and update the summary."""
        record = {
            "measures": summarise(clips, split, bool(row.recipe.contradicted)),
            "clips": [{"overall": each.overall, **asdict(each)} for each in clips],
        }
        with whole_file(self._path(split, row)) as temporary:
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
        self.write()

    def read(self, split: str, row: Row) -> dict[str, Any]:
        """Read a finished row: its measures and its clips.

        Raises:
            InputError: its file is damaged.
        """
        return self._read(self._path(split, row))

    def has_quiet(self) -> bool:
        """Whether the quiet videos are finished."""
        return self._quiet.is_file()

    def add_quiet(self, clips: Sequence[QuietScores]) -> None:
        """Write the levels of all quiet videos and update the summary."""
        record = {"measures": summarise_quiet(clips), "clips": [asdict(each) for each in clips]}
        with whole_file(self._quiet) as temporary:
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
        self.write()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: damaged ({error}); delete it and start again") from None

    def write(self) -> Path:
        """Write the summary of all finished rows; returns the path of the table."""
        splits: dict[str, Any] = {
            split: {row.key: self.read(split, row)["measures"] for row in self._rows if self.has(split, row)}
            for split in SPLITS
        }
        summary = {"settings": self._settings, "splits": splits}
        sections = [_section(split, self._rows, splits[split]) for split in SPLITS if splits[split]]
        if self.has_quiet():
            summary[QUIET] = quiet = self._read(self._quiet)["measures"]
            table_of_quiet = markdown_table({key: key for key in quiet}, quiet, QUIET_MEASURES)
            sections.append(f"## Quiet videos\n\n{table_of_quiet}")
        with whole_file(self._folder / RESULTS) as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        table = self._folder / TABLE
        with whole_file(table) as temporary:
            temporary.write_text("\n".join(sections), encoding="utf-8")
        return table


def _section(split: str, rows: Sequence[Row], results: Mapping[str, Mapping[str, float]]) -> str:
    return f"## {split.capitalize()}\n\n{markdown_table({row.key: row.title for row in rows}, results)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
