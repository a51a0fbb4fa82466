"""Which pictures are chosen, what they look like, and how awkward files fare."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from thinksound.media.decode import decode_video
from thinksound.media.frames import clip_pixels, sync_pixels
from thinksound.rates import clip_frame_count, sync_frame_count

CLIPS = sorted(path.name for path in (Path(__file__).parent / "parity" / "features" / "clips").iterdir())
NO_TIMES = ["avi_h264_b.avi", "avi_mpeg4_b.avi"]
TOO_SHORT = "one_frame_25.mp4"


def rgb_by_digest(path: Path) -> dict[str, np.ndarray]:
    """Every presented picture, as stored, under the first 16 digits of its SHA-256."""
    pictures = {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        graph = Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream), graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")
        ).configure()
        for frame in container.decode(stream):
            graph.vpush(frame)
            rgb = graph.vpull().to_ndarray()
            pictures[hashlib.sha256(rgb.tobytes()).hexdigest()[:16]] = rgb
    return pictures


@pytest.mark.parametrize("name", [name for name in CLIPS if name not in [*NO_TIMES, TOO_SHORT]])
def test_chosen_pictures_equal_the_reference(clips: Path, frames_reference: dict, name: str) -> None:
    reference = frames_reference[name]
    video = decode_video(clips / name)
    pictures = rgb_by_digest(clips / name)
    turns = reference["display_rotation"] // 90 % 4
    for frames, expected, pixels, count in [
        (video.clip_frames, reference["torio_8fps"], clip_pixels, clip_frame_count(video.duration_s)),
        (video.sync_frames, reference["torio_25fps"], sync_pixels, sync_frame_count(video.duration_s)),
    ]:
        assert len(frames) == count
        # The reference ends where its last picture starts; what is missing repeats the last entry.
        digests = expected["rgb24_sha256_16"][:count]
        digests += digests[-1:] * (count - len(digests))
        for frame, digest in zip(frames.numpy(), digests, strict=True):
            assert np.array_equal(frame, pixels(np.rot90(pictures[digest], turns)))
    assert video.frame_count == reference["frames"]
