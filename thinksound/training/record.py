"""The record of a run in its folder, so that a run resumes only with the options it began with."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import InputError
from ..media.files import whole_file
from .loop import CHECKPOINT
from .processes import own_rank

RUN = "run.json"


def declare_run(folder: Path, essential: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Write the record of a run; if the folder holds a run with a checkpoint, check that it is the same.

    Args:
        folder: of the run; it exists.
        essential: options that decide the result, by their names for the user.
        other: options that may change when the run resumes.

    Returns:
        Sentences that the user should read, such as that a library changed.

    Raises:
        InputError: the folder holds a run with other essential options.
    """
    file = folder / RUN
    now = {"options": dict(essential), "other": dict(other), "versions": _versions()}
    now = json.loads(json.dumps(now, default=str))
    notes: list[str] = []
    if file.exists() and (folder / CHECKPOINT).exists():
        before = read_run(folder)
        names = {**before["options"], **now["options"]}
        differing = [
            f"{name} {_shown(before['options'].get(name))}, not {_shown(now['options'].get(name))}"
            for name in names
            if before["options"].get(name) != now["options"].get(name)
        ]
        if differing:
            raise InputError(
                f"{folder}: its run was started with {'; '.join(differing)}; give the same options to go "
                "on, or another folder for a new run"
            )
        notes = [
            f"{name} was {there}, is {here} now: the result may differ in the last digits"
            for name, here in now["versions"].items()
            if (there := before["versions"].get(name)) != here
        ]
    if own_rank() == 0:
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    return notes


def read_run(folder: Path) -> dict[str, Any]:
    """Read the record that `declare_run` wrote.

    Raises:
        InputError: it is missing, or not such a record.
    """
    file = folder / RUN
    if not file.is_file():
        raise InputError(f"{folder}: no training run (there is no {RUN}); give the folder of one")
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(record[part], dict) for part in ("options", "other", "versions")):
            raise ValueError("parts are missing")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the record of a run ({error}); restore it") from None
    return record


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _versions() -> dict[str, str]:
    return {
        "thinksound": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "devices": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
