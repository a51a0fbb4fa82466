"""Reads JSON from untrusted files: the size is bounded, and all invalid content raises `ValueError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 1 << 22  # bytes; descriptions of networks and lists of files have less than a tenth of that


def read_object(path: Path, largest: int = _LARGEST) -> dict[str, Any]:
    """Return the JSON object in the file ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is larger than ``largest`` bytes, is not JSON in UTF-8, is nested too deeply,
            holds a number that is not finite, or something other than an object. The message says which.
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
