"""Synthetic clips, as arrays or as files to watch and listen to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from ..errors import OutputError
from ..media.files import whole_file
from ..media.mux import encode_sound
from .make import make_scene
from .picture import render_frames
from .scene import Scene
from .sound import SAMPLE_RATE, synthesise
from .texts import describe

CAPTIONS = "captions.csv"
_COLUMNS = ("file", "caption", "cot")


@dataclass(frozen=True)
class Clip:
    """One synthetic clip: its scene, frames, sound and texts."""

    scene: Scene
    frames: NDArray[np.uint8]  # (N, H, W, 3)
    waveform: NDArray[np.float32]  # (2, A)
    caption: str
    cot: str


def make_clips(
    split: str, seeds: Iterable[int], sample_rate: int = SAMPLE_RATE, duration_s: float = 4.0
) -> Iterator[Clip]:
    """Yield one clip per seed; each is made only when it is needed."""
    for seed in seeds:
        scene = make_scene(split, seed, duration_s)
        caption, cot = describe(scene)
        yield Clip(scene, render_frames(scene), synthesise(scene, sample_rate), caption, cot)


def write_clip(
    scene: Scene, folder: Path | str, name: str, sample_rate: int = SAMPLE_RATE, silent: bool = False
) -> tuple[Path, Path, Path]:
    """Write NAME.mp4 (H.264 with AAC), NAME.wav (16 bit) and NAME.json (the scene and the texts).

    Each file appears whole or not at all.

    Args:
        scene: what happens in the clip.
        folder: where the files go.
        name: of the files, without an ending.
        sample_rate: of the sound, in Hz.
        silent: leave the sound out of the MP4.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    video, sound, truth = (Path(folder) / f"{name}{suffix}" for suffix in (".mp4", ".wav", ".json"))
    caption, cot = describe(scene)
    record = {"caption": caption, "cot": cot, "sample_rate": sample_rate, "scene": asdict(scene)}
    waveform = synthesise(scene, sample_rate)
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform.T, sample_rate, subtype="PCM_16", format="WAV")
    with whole_file(video) as temporary:
        _write_video(temporary, render_frames(scene), scene.fps, None if silent else waveform, sample_rate)
    with whole_file(sound) as temporary:
        temporary.write_bytes(encoded.getvalue())
    with whole_file(truth) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return video, sound, truth


def write_captions(folder: Path | str, scenes: Mapping[str, Scene]) -> Path:
    """Write ``captions.csv``, which `prepare` reads: file, caption and chain of thought of each clip.

    Existing rows of other files are kept. Returns the path of the table.

    Args:
        folder: where the clips are.
        scenes: the scene of each clip, by the name of its MP4.

    Raises:
        OutputError: the table cannot be written, or the existing one was not written by this function.
    """
    table = Path(folder) / CAPTIONS
    rows = _captions(table) | {file: describe(scene) for file, scene in scenes.items()}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [_COLUMNS, *((file, *texts) for file, texts in sorted(rows.items()))]
    )
    with whole_file(table) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return table


def _captions(table: Path) -> dict[str, tuple[str, str]]:
    if not table.exists():
        return {}
    try:
        header, *rows = csv.reader(table.read_text(encoding="utf-8").splitlines())
        if tuple(header) != _COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)}")
        return {file: (caption, cot) for file, caption, cot in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise OutputError(
            f"{table}: not a table that make-data wrote ({error}); move it away or choose another folder"
        ) from None


def _write_video(
    path: Path, frames: NDArray[np.uint8], fps: int, waveform: NDArray[np.float32] | None, sample_rate: int
) -> None:
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "fast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Created before any packet is muxed: the header needs all streams.
        pcm16 = None if waveform is None else torch.from_numpy((waveform * 32767).round().astype(np.int16))
        sound = () if pcm16 is None else encode_sound(container, pcm16, sample_rate)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        for packet in sound:
            container.mux(packet)
