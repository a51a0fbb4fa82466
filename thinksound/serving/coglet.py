"""Works around two faults of Cog's server: it refuses null, and leaves folders behind."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .watchdog import is_server

logger = logging.getLogger(__name__)

SCHEMA = Path(".cog/openapi_schema.json")  # by which the server checks inputs; it reads it after setup()
PREDICTIONS = Path("/tmp/coglet/predictions")  # the server uses this folder whatever TMPDIR says


def accept_null(schema: Path) -> None:
    """Rewrite the schema to allow null for every optional input, because web forms send it for empty fields.

    Cog describes an optional input as ``"type": "number", "nullable": true``, but checks only the type.
    """
    if not schema.exists():  # outside an image there is no schema, and the server checks no types
        return
    document = json.loads(schema.read_text())
    inputs = document["components"]["schemas"]["Input"]
    for name, described in inputs["properties"].items():
        if name not in inputs.get("required", []) and isinstance(described.get("type"), str):
            described["type"] = [described["type"], "null"]
    whole = schema.with_suffix(".new")
    try:
        whole.write_text(json.dumps(document))
        whole.replace(schema)
    except OSError as error:
        whole.unlink(missing_ok=True)
        logger.info("%s: %s; null is refused for optional inputs", schema, error.strerror)


def remove_folders(before: float) -> None:
    """Remove the empty folders of predictions that began before ``before``, in seconds since 1970.

    Removes nothing while another server runs on the machine, because the folders may be its own.
    """
    processes = Path("/proc")
    if not (PREDICTIONS.is_dir() and processes.is_dir()):  # macOS has no /proc
        return
    running = (int(each.name) for each in processes.iterdir() if each.name.isdigit())
    if any(is_server(each) for each in running if each != os.getppid()):
        return
    for folder in PREDICTIONS.iterdir():
        with contextlib.suppress(OSError):  # not empty, or not a folder
            if folder.stat().st_mtime < before:
                for inner in ("inputs", "outputs"):
                    (folder / inner).rmdir()
                folder.rmdir()


def fill_in(function: Callable[..., Any], *values: Any) -> list[Any]:
    """Return ``values``, the arguments for the last parameters of ``function``, with defaults for None."""
    defaults = list(inspect.signature(function).parameters.values())[-len(values) :]
    # When Cog loads the predictor, it replaces Input(...) by its default.
    return [
        getattr(each.default, "default", each.default) if value is None else value
        for value, each in zip(values, defaults, strict=True)
    ]
