"""Generates the soundtrack of a video from its frames and from texts that say what is heard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import (
        InputError,
        MediaError,
        OutputError,
        PlacementError,
        ThinkSoundError,
        WeightsError,
    )
    from .loading import load
    from .pipeline import Pipeline
    from .request import Options
    from .result import Result

_HOME = {
    "InputError": "errors",
    "MediaError": "errors",
    "OutputError": "errors",
    "PlacementError": "errors",
    "ThinkSoundError": "errors",
    "WeightsError": "errors",
    "Options": "request",
    "Pipeline": "pipeline",
    "Result": "result",
    "load": "loading",
}

__all__ = [
    "InputError",
    "MediaError",
    "Options",
    "OutputError",
    "Pipeline",
    "PlacementError",
    "Result",
    "ThinkSoundError",
    "WeightsError",
    "load",
]


def __getattr__(name: str) -> Any:
    # Imports on first use, so that `thinksound --help` does not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
