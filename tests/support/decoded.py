"""Decodes videos with the views of ThinkSound, which most tests of media use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from thinksound.encoders.views import METACLIP_VIEW, SYNC_VIEW
from thinksound.media import decode
from thinksound.media.decode import DecodedVideo

VIEWS = (METACLIP_VIEW, SYNC_VIEW)


def decode_video(
    path: Path | str, duration_s: float | None = None, progress: Callable[[float], None] | None = None
) -> DecodedVideo:
    return decode.decode_video(path, VIEWS, duration_s, progress)
