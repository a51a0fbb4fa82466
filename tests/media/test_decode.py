"""Which pictures are chosen, what they look like, and how awkward files fare."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.filter import Graph
from PIL import Image
from support import clips as make
from support import paths
from support.decoded import decode_video

from thinksound.encoders.pixels import clip_pixels, sync_pixels
from thinksound.encoders.views import clip_frame_count, sync_frame_count
from thinksound.errors import InputError, MediaError
from thinksound.media.editlist import edit_list_end
from thinksound.media.probe import probe

CLIPS = sorted(path.name for path in paths.CLIPS.iterdir())
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
        (video.frames["clip"], reference["torio_8fps"], clip_pixels, clip_frame_count(video.duration_s)),
        (video.frames["sync"], reference["torio_25fps"], sync_pixels, sync_frame_count(video.duration_s)),
    ]:
        assert len(frames) == count
        # The reference ends where its last picture starts; what is missing repeats the last entry.
        digests = expected["rgb24_sha256_16"][:count]
        digests += digests[-1:] * (count - len(digests))
        for frame, digest in zip(frames.numpy(), digests, strict=True):
            assert np.array_equal(frame, pixels(np.rot90(pictures[digest], turns)))
    assert video.frame_count == reference["frames"]


def tick_of(time: Fraction, rate: int) -> int:
    """The tick nearest to a time, halves away from zero."""
    ticks = abs(time * rate)
    return int(ticks + Fraction(1, 2)) * (1 if time >= 0 else -1)


def expected_indices(times: Sequence[Fraction], rate: int, count: int) -> list[int]:
    """The published rule, written out: which picture each tick shows."""
    ticks = [tick_of(time, rate) for time in times]
    chosen = [
        max(index for index, tick in enumerate(ticks) if tick <= now) for now in range(ticks[0], ticks[-1])
    ]
    return (chosen + [(chosen or [len(times) - 1])[-1]] * count)[:count]


def numbers(frames: torch.Tensor) -> list[int]:
    """The indices painted on square pictures."""
    return [make.number_of(frame) for frame in frames.numpy()]


SQUARE = (64, 64)
B_FRAMES = {"preset": "medium", "bf": "3", "b_strategy": "0"}
RECORDING = [0, 0.033, 0.066, 0.1, 0.2, 0.25, 0.3, 0.6, 0.7, 0.733, 0.766, 0.8, 3.0, 3.1]


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov", "ts", "flv", "nut"])
@pytest.mark.parametrize("times", [[n / 30 for n in range(40)], RECORDING, [n / 5 for n in range(8)]])
def test_each_tick_shows_the_last_picture_that_fell_on_it(
    tmp_path: Path, container: str, times: list[float]
) -> None:
    video = decode_video(
        make.render(tmp_path / f"clip.{container}", times=times, size=SQUARE, options=B_FRAMES)
    )
    assert video.frame_count == len(times)
    for name, rate in (("clip", 8), ("sync", 25)):
        frames = video.frames[name]
        assert numbers(frames) == expected_indices(video.timeline.times, rate, len(frames))
    seen = [round(float(time - video.timeline.start), 3) for time in video.timeline.times]
    assert seen == pytest.approx(times, abs=0.0011)


def test_a_clock_that_starts_below_zero_rounds_away_from_it(tmp_path: Path) -> None:
    clip = make.render(tmp_path / "clip.mp4", size=SQUARE, options={"bf": "0"})
    keep = {"avoid_negative_ts": "disabled"}
    video = decode_video(make.remux(clip, tmp_path / "clip.ts", shift_s=-0.5, container_options=keep))
    assert video.start_s == -0.5
    assert numbers(video.frames["sync"]) == expected_indices(video.timeline.times, 25, 25)
    assert numbers(video.frames["clip"]) == expected_indices(video.timeline.times, 8, 8)


@pytest.mark.parametrize("name", NO_TIMES)
def test_pictures_of_an_avi_come_in_order_at_an_even_pace(clips: Path, name: str) -> None:
    video = decode_video(clips / name)
    assert video.timeline.times == tuple(Fraction(index, 25) for index in range(25))
    assert video.duration_s == 1.0
    pictures = list(rgb_by_digest(clips / name).values())
    for name, rate, pixels in [("clip", 8, clip_pixels), ("sync", 25, sync_pixels)]:
        frames = video.frames[name].numpy()
        expected = expected_indices(video.timeline.times, rate, len(frames))
        for frame, index in zip(frames, expected, strict=True):
            assert np.array_equal(frame, pixels(pictures[index]))


@pytest.mark.parametrize(
    "name, start_s, duration_s",
    [
        ("audio_longer_30_3p2s_6s.mp4", 0.0, 3.2),
        ("video_starts_0p5_after_audio_30.mp4", 0.5, 3.2),
        ("start0p51_30_3p2s.mkv", 0.51, 3.2),
        ("start1p4_25_1p0s.ts", 1.4, 1.0),
        ("bframes_editlist_25_3p2s.mp4", 0.0, 3.2),
        ("trim_copy_editlist_25.mp4", 0.0, 3.16),
        ("vfr_mp4.mp4", 0.0, 5.239),
        ("cfr2997_9p0s.mp4", 0.0, 9.009),
        ("gif_10_1p2s.gif", 0.0, 1.2),
        ("interl.mpg", 7 / 12, 1.0),
    ],
)
def test_the_duration_is_that_of_the_presented_pictures(
    clips: Path, name: str, start_s: float, duration_s: float
) -> None:
    video = decode_video(clips / name)
    assert video.start_s == pytest.approx(start_s)
    assert video.duration_s == pytest.approx(duration_s)
    assert not video.timeline.cut and video.notes == ()


def test_pictures_hidden_by_an_edit_list_are_not_seen(tmp_path: Path) -> None:
    long = make.render(tmp_path / "long.mp4", frames=75, size=SQUARE, options={**B_FRAMES, "g": "250"})
    # Packets at negative times make the muxer write an edit list that hides them.
    path = make.remux(long, tmp_path / "trimmed.mp4", shift_s=-1.0)
    video = decode_video(path)
    assert video.duration_s == pytest.approx(2.0) and video.frame_count == 50
    assert numbers(video.frames["sync"]) == [25 + index for index in [*range(49), 48]]


def test_a_still_at_the_end_of_a_recording_counts(tmp_path: Path) -> None:
    times = [n / 10 for n in range(10)] + [9.0]
    video = decode_video(make.render(tmp_path / "still.mp4", times=times, rate=10, size=SQUARE))
    assert video.duration_s == pytest.approx(9.1)
    assert numbers(video.frames["clip"])[8:] == [9] * (72 - 8)  # on screen for eight seconds


@pytest.mark.parametrize("options", [{"bf": "0"}, B_FRAMES])
def test_a_still_that_is_the_last_picture_counts(tmp_path: Path, options: dict[str, str]) -> None:
    path = make.render(tmp_path / "still.mp4", frames=20, stay_s=8.0, size=SQUARE, options=options)
    assert decode_video(path).duration_s == pytest.approx(19 / 25 + 8.0, abs=0.001)


@pytest.mark.parametrize("name", [name for name in CLIPS if name.endswith((".mp4", ".mov"))])
def test_the_edit_list_ends_where_the_last_picture_does(clips: Path, name: str) -> None:
    """Read in two ways: from the boxes, and from FFmpeg's times of the pictures."""
    with av.open(clips / name) as container:
        stream = container.streams.video[0]
        last = max(container.decode(stream), key=lambda frame: make.seconds(frame.pts, stream.time_base))
        end = edit_list_end(clips / name, stream.id)
        shown = make.seconds(last.pts, stream.time_base) + make.seconds(last.duration, stream.time_base)
        assert end == pytest.approx(shown, abs=0.001)


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return (8 + len(body)).to_bytes(4, "big") + kind + body


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "edits, end",
    [
        ([(3000, 0)], Fraction(5)),
        ([(3000, 1024)], Fraction(5)),
        ([(3001, 0)], Fraction(3001, 600)),  # exact: no multiple of a millisecond
        ([(600, -1), (3000, 512)], Fraction(6)),  # a pause, then the pictures
        ([(0, 0)], None),  # a fragmented file: not known yet
        ([(600, -1)], None),
        ([(3000, 0), (600, -1)], None),
        ([(1500, 0), (1500, 90_000)], None),  # two stretches
        ([], Fraction(0)),
    ],
)
def test_an_edit_list_is_read_where_it_says_no_more_than_start_and_end(
    tmp_path: Path, wide: bool, edits: list[tuple[int, int]], end: Fraction | None
) -> None:
    width = 8 if wide else 4
    version = bytes([wide, 0, 0, 0])
    dates = bytes(2 * width)
    header = box(b"mvhd", version, dates, (600).to_bytes(4, "big"), bytes(100))
    rows = [
        duration.to_bytes(width, "big") + start.to_bytes(width, "big", signed=True) + b"\0\1\0\0"
        for duration, start in edits
    ]
    edit_list = box(b"elst", version, len(rows).to_bytes(4, "big"), *rows)
    tracks = [
        box(b"trak", box(b"tkhd", version, dates, (1).to_bytes(4, "big"), bytes(60))),
        box(
            b"trak", box(b"tkhd", version, dates, (2).to_bytes(4, "big"), bytes(60)), box(b"edts", edit_list)
        ),
    ]
    path = tmp_path / "boxes.mp4"
    path.write_bytes(box(b"ftyp", b"isom") + box(b"moov", header, *tracks) + box(b"mdat", bytes(10)))
    assert edit_list_end(path, 2) == end
    assert edit_list_end(path, 1) is None


@pytest.mark.parametrize(
    ("changed_ms", "duration_s"), [(0, 1.0), (2, 1.0), (-2, 1.0), (3, 1.003), (-5, 0.995)]
)
def test_an_edit_list_decides_the_end_where_it_differs_by_more_than_its_rounding(
    tmp_path: Path, changed_ms: int, duration_s: float
) -> None:
    """25 frames at 25 per second, and an edit list in milliseconds that says another length."""
    content = make.render(tmp_path / "whole.mp4").read_bytes()
    place = content.index(b"elst") + 12  # of the first edit's duration, after version and count
    length_ms = int.from_bytes(content[place : place + 4], "big")
    assert length_ms == 1000
    changed = (length_ms + changed_ms).to_bytes(4, "big")
    (tmp_path / "changed.mp4").write_bytes(content[:place] + changed + content[place + 4 :])
    video = decode_video(tmp_path / "changed.mp4")
    assert video.frame_count == 25
    assert video.duration_s == pytest.approx(duration_s, abs=1e-9)


def test_an_edit_list_that_cannot_be_read_is_ignored(clips: Path, tmp_path: Path) -> None:
    content = (clips / "bframes_editlist_25_3p2s.mp4").read_bytes()
    position = content.index(b"elst")
    for name, damaged in {
        "absent": content[:position] + b"free" + content[position + 4 :],
        "many": content[:position] + b"elst\0\0\0\0\x7f\xff\xff\xff" + content[position + 12 :],
        "cut": content[: position + 10],
        "text": b"hello" * 20,
        "none": b"",
    }.items():
        (tmp_path / name).write_bytes(damaged)
        assert edit_list_end(tmp_path / name, 1) is None
    assert edit_list_end(clips / "bframes_editlist_25_3p2s.mp4", 1) == Fraction(16, 5)
    assert edit_list_end(clips / "bframes_editlist_25_3p2s.mp4", 7) is None


def test_a_gif_shows_its_last_picture_as_long_as_it_says(tmp_path: Path) -> None:
    pictures = [Image.fromarray(make.numbered(index, *SQUARE)) for index in range(4)]
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 100, 300, 1500]
    )
    assert decode_video(tmp_path / "a.gif").duration_s == pytest.approx(2.0)


def test_a_slide_show_of_one_picture_a_second_fills_every_tick(tmp_path: Path) -> None:
    video = decode_video(make.render(tmp_path / "slides.mp4", rate=1, frames=9, size=SQUARE))
    assert video.duration_s == 9.0
    assert numbers(video.frames["clip"]) == [n // 8 for n in range(64)] + [7] * 8


@pytest.mark.parametrize("rate, frames", [(30, 3), (30, 4), (25, 3), (200, 20), (5, 1), (1, 1)])
def test_very_short_clips_work(tmp_path: Path, rate: int, frames: int) -> None:
    path = make.render(tmp_path / "short.mkv", codec="ffv1", rate=rate, frames=frames, size=SQUARE)
    video = decode_video(path)
    assert video.duration_s == pytest.approx(frames / rate, abs=0.001)
    sync = video.frames["sync"]
    assert len(video.frames["clip"]) == clip_frame_count(video.duration_s)
    assert len(sync) == sync_frame_count(video.duration_s)
    assert numbers(sync) == expected_indices(video.timeline.times, 25, len(sync))


def test_less_than_a_tenth_of_a_second_is_refused(clips: Path) -> None:
    with pytest.raises(MediaError, match=r"only 0\.04 s of moving pictures; at least 0\.1 s"):
        decode_video(clips / TOO_SHORT)


def test_one_frame_of_a_picture_format_is_called_a_still_picture(tmp_path: Path) -> None:
    path = make.render(tmp_path / "a.mkv", codec="mjpeg", pixel_format="yuvj420p", frames=1)
    with pytest.raises(MediaError, match="still picture: one mjpeg frame"):
        decode_video(path)


@pytest.mark.parametrize("duration_s", [0.1, 0.5, 1.0, 1.96, 2.0])
def test_a_cut_uses_the_ticks_of_the_whole_video(tmp_path: Path, duration_s: float) -> None:
    path = make.render(tmp_path / "clip.mp4", frames=60, rate=30, size=SQUARE, options=B_FRAMES)
    whole, cut = decode_video(path), decode_video(path, duration_s)
    assert cut.duration_s == pytest.approx(duration_s)
    assert cut.timeline.cut == (duration_s < 2.0)
    assert cut.frame_count == sum(n / 30 < duration_s for n in range(60))
    assert torch.equal(cut.frames["clip"], whole.frames["clip"][: clip_frame_count(duration_s)])
    assert torch.equal(cut.frames["sync"], whole.frames["sync"][: sync_frame_count(duration_s)])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_cut_within_a_still_keeps_the_still(tmp_path: Path, name: str) -> None:
    times = [*(n / 25 for n in range(12)), *(4 + n / 25 for n in range(25))]
    clip = make.render(tmp_path / name, times=times, size=SQUARE, options=B_FRAMES)
    video = decode_video(clip, 3.0)
    assert video.duration_s == 3.0 and video.frame_count == 12 and video.timeline.cut
    assert len(video.frames["sync"]) == 75 and numbers(video.frames["sync"])[-1] == 11


def test_a_cut_longer_than_the_video_changes_nothing(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mp4", size=SQUARE)
    assert decode_video(path, 60.0).timeline == decode_video(path).timeline


@pytest.mark.parametrize("duration_s", [0.05, 0.0, -1.0, 500.0, float("nan"), float("inf")])
def test_an_impossible_cut_is_refused(clips: Path, duration_s: float) -> None:
    with pytest.raises(InputError, match=r"allowed are 0\.1 to 180 s"):
        decode_video(clips / "cfr25_1p0s.mp4", duration_s)


def test_nothing_after_the_cut_is_decoded(tmp_path: Path) -> None:
    path = half_of(make.render(tmp_path / "clip.mp4", frames=250, draw=noise, container_options=INDEX_FIRST))
    assert decode_video(path).notes
    assert decode_video(path, 1.0).notes == ()


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_a_long_video_is_refused_before_it_is_decoded(tmp_path: Path, container: str) -> None:
    path = make.render(tmp_path / f"long.{container}", rate=2, frames=400)
    shares: list[float] = []
    with pytest.raises(MediaError, match=r"longer than 180 s; use the first part only \(--duration S\)"):
        decode_video(path, progress=shares.append)
    assert shares == []
    assert decode_video(path, 3.0).duration_s == 3.0


def test_a_long_video_that_hides_its_length_is_refused_too(tmp_path: Path) -> None:
    path = make.render(tmp_path / "live.webm", rate=2, frames=400, **LIVE_WEBM)
    assert probe(path).container_duration_s is None
    with pytest.raises(MediaError, match="longer than 180 s"):
        decode_video(path)


def test_a_container_that_claims_too_much_is_not_believed(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mp4", frames=10, sound_s=20.0)
    assert probe(path).container_duration_s == pytest.approx(20, abs=1)
    assert decode_video(path).duration_s == pytest.approx(0.4)


def test_progress_rises_to_one(clips: Path) -> None:
    shares: list[float] = []
    decode_video(clips / "cfr30_3p2s.mp4", progress=shares.append)
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(shares) > 90


def noise(index: int, width: int, height: int) -> np.ndarray:
    """Pictures that do not compress, so that damage hits one of them."""
    return np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)


def half_of(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


INDEX_FIRST = {"movflags": "faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
QUIET = "log-level=none"
QUICK_VP9 = {"deadline": "realtime", "cpu-used": "8"}
LIVE_WEBM: dict[str, Any] = {
    "codec": "libvpx-vp9",
    "options": QUICK_VP9,
    "container_options": {"live": "1"},
}

AWKWARD: dict[str, tuple[str, dict[str, Any]]] = {
    "WebM without a duration": ("live.webm", LIVE_WEBM),
    "WebM with alpha": (
        "alpha.webm",
        {"codec": "libvpx-vp9", "pixel_format": "yuva420p", "options": {"auto-alt-ref": "0"}},
    ),
    "VP8": ("old.webm", {"codec": "libvpx"}),
    "raw H.264": ("raw.h264", {"options": B_FRAMES}),
    "raw HEVC": ("raw.hevc", {"codec": "libx265", "options": {"x265-params": QUIET}}),
    "fragmented MP4": ("frag.mp4", {"container_options": FRAGMENTS, "options": {"g": "5"}}),
    "MPEG program stream": ("disc.mpg", {"codec": "mpeg2video", "container_format": "mpeg"}),
    "HEVC, 10 bits, HDR": (
        "hdr.mov",
        {
            "codec": "libx265",
            "pixel_format": "yuv420p10le",
            "options": {
                "x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
            },
        },
    ),
    "interlaced": ("tv.mkv", {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}}),
    "AV1": ("new.mkv", {"codec": "libsvtav1", "options": {"preset": "12"}}),
    "ProRes": ("edit.mov", {"codec": "prores_ks", "pixel_format": "yuv422p10le"}),
    "Motion JPEG": ("camera.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
    "Windows Media": ("old.wmv", {"codec": "wmv2", "container_format": "asf"}),
    "odd sides": ("odd.mkv", {"codec": "ffv1", "size": (63, 47)}),
    "sound longer than the picture": ("music.mp4", {"sound_s": 3.0}),
}


@pytest.mark.parametrize("case", AWKWARD)
def test_awkward_files_simply_work(tmp_path: Path, case: str) -> None:
    name, options = AWKWARD[case]
    video = decode_video(make.render(tmp_path / name, **{"size": SQUARE, **options}))
    assert video.frame_count == 25
    assert video.duration_s == pytest.approx(1.0)
    assert video.notes == ()
    assert video.frames["clip"].shape == (8, 224, 224, 3) and video.frames["sync"].shape == (25, 224, 224, 3)
    expected = expected_indices(video.timeline.times, 25, 25)
    if case != "odd sides":
        assert numbers(video.frames["sync"]) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="priorities are read on Linux alone")
def test_rendering_av1_leaves_the_priority_of_the_tests_alone(tmp_path: Path) -> None:
    """Else all later tests, and the servers they start, would be real-time processes, which starve others."""
    before = os.sched_getscheduler(0)
    make.render(tmp_path / "new.mkv", codec="libsvtav1", options={"preset": "12"})
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize(
    "name, options",
    [
        ("index.mp4", {"container_options": INDEX_FIRST}),
        ("fragments.mp4", {"container_options": FRAGMENTS, "options": {"g": "5"}}),
        ("clip.mkv", {}),
        ("clip.webm", {"codec": "libvpx-vp9", "options": QUICK_VP9}),
        ("clip.ts", {}),
        ("clip.avi", {"codec": "mpeg4"}),
        ("clip.flv", {}),
    ],
)
def test_what_decodes_of_an_incomplete_file_is_used_and_said(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    path = half_of(make.render(tmp_path / name, frames=50, draw=noise, size=(160, 120), **options))
    video = decode_video(path)
    assert 0.7 < video.duration_s < 1.1
    assert len(video.notes) == 1 and "incomplete" in video.notes[0]


def test_a_file_of_which_too_little_decodes_is_refused(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mp4", frames=50, draw=noise, container_options=INDEX_FIRST)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 20])
    with pytest.raises(MediaError, match=r"damaged"):
        decode_video(path)


def test_damage_in_the_middle_is_survived(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mkv", frames=50, draw=noise, size=(160, 120))
    content = bytearray(path.read_bytes())
    for position in np.random.default_rng(1).integers(len(content) // 4, len(content) * 3 // 4, 60):
        content[position] ^= 0xFF
    path.write_bytes(content)
    video = decode_video(path)
    assert video.duration_s == pytest.approx(2.0, abs=0.2) and "damaged" in video.notes[0]


def test_a_size_that_changes_is_followed(tmp_path: Path) -> None:
    small = make.render(tmp_path / "small.h264", size=SQUARE)
    large = make.render(tmp_path / "large.h264", size=(128, 128))
    joined = tmp_path / "joined.h264"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    video = decode_video(joined)
    assert not video.timeline.constant_shape
    assert numbers(video.frames["sync"]) == [*range(25), *range(24), 23]


def test_a_clock_that_starts_again_runs_on(tmp_path: Path) -> None:
    first = make.render(tmp_path / "first.ts", size=SQUARE, options={"bf": "0"})
    pauses = make.render(tmp_path / "pauses.ts", times=[0, 0.04, 0.4, 0.8], size=SQUARE, options={"bf": "0"})
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + pauses.read_bytes())
    video = decode_video(joined)
    assert video.frame_count == 29
    seen = [float(time - video.timeline.start) for time in video.timeline.times]
    assert seen == pytest.approx([n / 25 for n in range(25)] + [1.0, 1.04, 1.4, 1.8], abs=0.001)


TWINS = [n / 25 - n // 6 / 25 for n in range(60)]  # every sixth frame has the time of the one before
LATE = [n / 25 - (0.07 if n % 7 == 3 else 0) for n in range(60)]  # every seventh comes before the one before
PAUSE = [n / 25 + (n >= 30) for n in range(60)]
RUN = [0.4 if 10 <= n < 15 else n / 25 for n in range(60)]
IRREGULAR = {
    "twins": (TWINS, 2.04),
    "three of one time": ([n / 25 if n % 9 > 1 else n // 9 * 9 / 25 for n in range(60)], 2.4),
    "a run of one time": (RUN, 2.4),
    "a twin before a pause": ([time if n != 29 else 28 / 25 for n, time in enumerate(PAUSE)], 3.4),
    "twins at the end": ([min(n, 58) / 25 for n in range(60)], 2.36),
    "slightly backwards": (LATE, 2.36),
}


@pytest.mark.parametrize("options", [{"bf": "0"}, B_FRAMES])
@pytest.mark.parametrize("case", IRREGULAR)
def test_frames_with_one_time_move_by_less_than_one_interval(
    tmp_path: Path, case: str, options: dict[str, str]
) -> None:
    times, duration_s = IRREGULAR[case]
    clip = make.render(tmp_path / "clip.mp4", frames=60, size=SQUARE, options=options)
    video = decode_video(make.remux(clip, tmp_path / "irregular.mkv", times=times))
    seen = video.timeline.times
    assert [make.number_of(frame) for frame in video.frames["sync"][:2].numpy()] in ([0, 1], [0, 2])
    assert len(seen) == 60 and all(before < after for before, after in pairwise(seen))
    latest = -1.0
    for time, stored in zip(seen, times, strict=True):
        if stored > latest + 0.0005:
            assert float(time) == pytest.approx(stored, abs=0.0006)  # nothing after a twin moves
        else:
            assert 0 < float(time) - latest < 0.0406
        latest = max(latest, stored)
    assert video.duration_s == pytest.approx(duration_s, abs=0.001)


def test_a_clock_that_never_moves_says_nothing(tmp_path: Path) -> None:
    clip = make.render(tmp_path / "clip.mkv", frames=20, size=SQUARE, options={"bf": "0"})
    video = decode_video(make.remux(clip, tmp_path / "still.mkv", times=[0.0] * 20))
    assert video.timeline.times == tuple(Fraction(n, 25) for n in range(20))
    assert video.duration_s == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize("name", ["cut.mkv", "cut.ts"])
def test_a_file_that_starts_within_a_group_of_pictures_says_how_much_is_lost(
    tmp_path: Path, name: str
) -> None:
    options = {"bf": "0", "g": "25", "sc_threshold": "0"}
    clip = make.render(tmp_path / "clip.mkv", frames=60, size=SQUARE, options=options)
    video = decode_video(make.remux(clip, tmp_path / name, skip=10))
    assert video.duration_s == pytest.approx(1.4, abs=0.001)
    assert len(video.notes) == 1 and "0.60 s" in video.notes[0]
    assert decode_video(make.remux(clip, tmp_path / name)).notes == ()


def test_an_incomplete_file_says_how_much_is_lost(tmp_path: Path) -> None:
    clip = make.render(
        tmp_path / "half.mp4", frames=50, draw=noise, size=(160, 120), container_options=INDEX_FIRST
    )
    video = decode_video(half_of(clip))
    assert f"{2 - video.duration_s:.2f} s at the end are lost" in video.notes[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
@pytest.mark.slow
def test_memory_is_that_of_the_pictures_kept(tmp_path: Path) -> None:
    """60 pictures in 4K take 750 MB as decoded, and those chosen 620 MB as RGB."""
    still = np.random.default_rng(0).integers(0, 255, (2160 // 16, 3840 // 16, 3), dtype=np.uint8)
    still = still.repeat(16, 0).repeat(16, 1)
    path = make.render(
        tmp_path / "4k.mp4", frames=60, rate=60, size=(3840, 2160), draw=lambda index, width, height: still
    )
    program = """
import resource, sys, torch
from thinksound.encoders.views import METACLIP_VIEW, SYNC_VIEW
from thinksound.media.decode import decode_video
torch.set_num_threads(1)
decode_video(sys.argv[2], (METACLIP_VIEW, SYNC_VIEW))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert decode_video(sys.argv[1], (METACLIP_VIEW, SYNC_VIEW)).frame_count == 60
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    small = make.render(tmp_path / "small.mp4")
    result = subprocess.run(
        [sys.executable, "-c", program, path, small], capture_output=True, text=True, check=True
    )
    grown = int(result.stdout) / (2**20 if sys.platform == "darwin" else 2**10)
    assert grown < 600  # MB: the decoder threads, each with pictures of 12 MB, and one as RGB


@pytest.mark.parametrize("duration_s", [None, 2.0])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
def test_a_video_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, duration_s: float | None
) -> None:
    path = make.render(tmp_path / name, frames=75, sound_s=3.0)
    opened = counted_opens(monkeypatch)
    video = decode_video(path, duration_s)
    assert len(opened) == 1
    assert video.info == probe(path)


def test_a_long_video_is_opened_once_and_a_wrong_claim_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = make.render(tmp_path / "long.mp4", rate=2, frames=400)
    claims = make.render(tmp_path / "claims.mp4", frames=10, sound_s=200.0)
    opened = counted_opens(monkeypatch)
    with pytest.raises(MediaError, match="longer than 180 s"):
        decode_video(long)
    assert len(opened) == 1
    assert decode_video(claims).duration_s == pytest.approx(0.4)
    assert len(opened) == 3


def counted_opens(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Remembers from now on what is opened; the files are opened all the same."""
    opened: list[Any] = []
    really = av.open

    def remember(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(file)
        return really(file, *arguments, **options)

    monkeypatch.setattr("thinksound.media.probe.av.open", remember)
    return opened
