"""Results as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .rows import Row
from .scores import MEASURES


def markdown_table(rows: Sequence[Row], results: Mapping[str, Mapping[str, float]]) -> str:
    """The table: one line per row that has results, one column per measure that any row has.

    Args:
        rows: in the order of the table.
        results: row key -> measure -> value.
    """
    there = [row for row in rows if row.key in results]
    columns = [each for each in MEASURES if any(each.key in results[row.key] for row in there)]
    lines = [
        ["", *(each.title for each in columns)],
        ["---"] * (len(columns) + 1),
        *(
            [row.title, *(_cell(results[row.key].get(each.key), each.form) for each in columns)]
            for row in there
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
