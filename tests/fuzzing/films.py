"""Small films in many containers and codecs, rendered once, to be damaged."""

from __future__ import annotations

from pathlib import Path

import av
from support import clips as make
from support.paths import CLIPS


def render_films(folder: Path) -> list[Path]:
    """Render into ``folder``; returns the films with the reference clips that are small."""
    folder.mkdir(parents=True, exist_ok=True)
    films = [_film(folder, *each) for each in _FILMS]
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    films.append(make.remux(folder / "b.mp4", folder / "fragments.mp4", container_options=fragments))
    for suffix in ("mkv", "flv", "ts", "mov", "nut"):
        films.append(make.remux(folder / "b.mp4", folder / f"copy.{suffix}"))
    films.append(_tagged(folder / "sound.mkv", folder / "tagged.mkv"))
    return films + sorted(path for path in CLIPS.iterdir() if path.stat().st_size < 150_000)


_B_FRAMES = {"preset": "ultrafast", "bf": "3", "g": "12"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}
_FILMS: tuple[tuple[str, dict[str, object]], ...] = (
    ("b.mp4", {"options": _B_FRAMES}),
    ("sound.mp4", {"sound_s": 1.0}),
    ("turned.mp4", {"rotation": 90}),
    ("changing.mp4", {"times": [0, 0.04, 0.1, 0.3, 0.34, 0.9], "stay_s": 0.5}),
    ("ten-bit.mp4", {"codec": "libx265", "pixel_format": "yuv420p10le", "options": _X265}),
    ("sound.mkv", {"sound_s": 1.0}),
    ("ffv1.mkv", {"codec": "ffv1", "frames": 8}),
    ("vp8.webm", {"codec": "libvpx", "options": {"deadline": "realtime"}}),
    ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}}),
    ("xvid.avi", {"codec": "mpeg4", "sound_s": 0}),
    ("mjpeg.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
    ("tv.mpg", {"codec": "mpeg2video"}),
    ("old.wmv", {"codec": "wmv2"}),
    ("web.gif", {"codec": "gif", "pixel_format": "rgb8", "frames": 10, "rate": 10}),
    (
        "web.apng",
        {"codec": "apng", "pixel_format": "rgb24", "frames": 10, "rate": 10, "container_format": "apng"},
    ),
)


def _film(folder: Path, name: str, options: dict[str, object]) -> Path:
    path = folder / name
    if not path.exists():
        make.render(path, **options)  # type: ignore[arg-type]
    return path


def _tagged(source: Path, target: Path) -> Path:
    """A copy with a title, a language and tags."""
    with av.open(source) as film, av.open(target, "w") as output:
        output.metadata.update(
            {"title": "A film", "comment": "c" * 300, "creation_time": "2024-01-02T03:04:05Z"}
        )
        copies = {stream.index: output.add_stream_from_template(stream) for stream in film.streams}
        for packet in film.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    return target
