"""Results as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .scores import MEASURES, Measure


def markdown_table(
    titles: Mapping[str, str],
    results: Mapping[str, Mapping[str, float]],
    measures: Sequence[Measure] = MEASURES,
) -> str:
    """The table: one line per row that has results, one column per measure that any row has.

    Args:
        titles: row key -> title, in the order of the table.
        results: row key -> measure -> value.
        measures: in the order of the table.
    """
    there = [key for key in titles if key in results]
    columns = [each for each in measures if any(each.key in results[key] for key in there)]
    lines = [
        ["", *(each.title for each in columns)],
        ["---"] * (len(columns) + 1),
        *(
            [titles[key], *(_cell(results[key].get(each.key), each.form) for each in columns)]
            for key in there
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
