"""Made clips, as arrays for training or as files for looking and listening."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from ..media.files import whole_file
from .make import make_scene
from .picture import render_frames
from .scene import Scene
from .sound import SAMPLE_RATE, synthesise
from .texts import describe


@dataclass(frozen=True)
class Clip:
    """One training sample: the truth and what it looks, sounds and reads like."""

    scene: Scene
    frames: NDArray[np.uint8]  # (N, H, W, 3)
    waveform: NDArray[np.float32]  # (2, A)
    caption: str
    cot: str


def make_clips(
    split: str, seeds: Iterable[int], sample_rate: int = SAMPLE_RATE, duration_s: float = 4.0
) -> Iterator[Clip]:
    """One clip per seed, each made when it is asked for."""
    for seed in seeds:
        scene = make_scene(split, seed, duration_s)
        caption, cot = describe(scene)
        yield Clip(scene, render_frames(scene), synthesise(scene, sample_rate), caption, cot)


def write_clip(
    scene: Scene, folder: Path | str, name: str, sample_rate: int = SAMPLE_RATE
) -> tuple[Path, Path, Path]:
    """Write NAME.mp4 (H.264, silent), NAME.wav (16 bit) and NAME.json (the truth and the texts).

    Each file appears whole or not at all.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    video, sound, truth = (Path(folder) / f"{name}{suffix}" for suffix in (".mp4", ".wav", ".json"))
    caption, cot = describe(scene)
    record = {"caption": caption, "cot": cot, "sample_rate": sample_rate, "scene": asdict(scene)}
    encoded = io.BytesIO()
    soundfile.write(encoded, synthesise(scene, sample_rate).T, sample_rate, subtype="PCM_16", format="WAV")
    with whole_file(video) as temporary:
        _write_video(temporary, render_frames(scene), scene.fps)
    with whole_file(sound) as temporary:
        temporary.write_bytes(encoded.getvalue())
    with whole_file(truth) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return video, sound, truth


def _write_video(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "fast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
