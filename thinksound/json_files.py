"""JSON from files that somebody else wrote: bounded in size, and every way to be wrong is one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 1 << 22  # bytes; no description of a network and no table of files has a tenth of it


def read_object(path: Path, largest: int = _LARGEST) -> dict[str, Any]:
    """The object in ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger than ``largest`` bytes, no JSON in UTF-8, nested too deeply, holds a number
            that is not finite, or something else than an object. The message is a few words.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"larger than {largest:,} bytes")
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not an object")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
