"""The finished MP4: the picture as it was, the sound where the picture is."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.sidedata.sidedata import Type as SideData
from support import clips as make
from support import paths
from support.decoded import decode_video

from thinksound.errors import MediaError, OutputError
from thinksound.media.decode import DecodedVideo
from thinksound.media.mux import MuxResult, _decoding_times, _output_time_base, mux
from thinksound.rates import MAX_DURATION_S, audio_sample_count

pytestmark = pytest.mark.slow

CLIPS = sorted(path.name for path in paths.CLIPS.iterdir())
NOT_COPIED = ["gif_10_1p2s.gif", "interl.mpg", "avi_h264_b.avi", "avi_mpeg4_b.avi"]
TOO_SHORT = "one_frame_25.mp4"
SAMPLE_RATE = 44_100
SQUARE = (64, 64)
B_FRAMES = {"preset": "medium", "bf": "3", "b_strategy": "0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3"}
HDR = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited"
QUICK_VP9 = {"deadline": "realtime", "cpu-used": "8"}
QUICK_AV1 = {"preset": "12"}


def chirp(samples: int) -> torch.Tensor:
    """Sound that resembles itself at one shift only: int16 (2, samples)."""
    time = np.arange(samples) / SAMPLE_RATE
    left = np.sin(2 * np.pi * (300 * time + 1500 * time**2 / time[-1])) * 0.5  # 300 to 3300 Hz
    return torch.from_numpy((np.stack([left, left[::-1]]) * 32767).astype(np.int16))


def muxed(video: DecodedVideo, output: Path, **metadata: str) -> MuxResult:
    sound = chirp(audio_sample_count(video.duration_s, SAMPLE_RATE))
    return mux(video, sound, SAMPLE_RATE, output, metadata)


def packets(path: Path) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def relative_times(video: DecodedVideo) -> list[float]:
    return [float(time - video.timeline.start) for time in video.timeline.times]


def check_sound(path: Path, duration_s: float) -> None:
    """The sound starts with the picture and lasts as long, to the sample that MP4 can express."""
    sound = chirp(audio_sample_count(duration_s, SAMPLE_RATE)).numpy() / 32768
    samples = sound.shape[1]
    with av.open(path) as container:
        stream = container.streams.audio[0]
        assert (stream.name, stream.rate, stream.layout.name) == ("aac", SAMPLE_RATE, "stereo")
        assert stream.start_time == 0
        assert make.seconds(stream.duration, stream.time_base) == pytest.approx(
            duration_s, abs=0.5 / SAMPLE_RATE
        )
        decoded = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)
    assert 0 <= decoded.shape[1] - samples < 1024  # the last AAC frame is padded
    if samples > 20_000:
        window = slice(samples // 2 - 4000, samples // 2 + 4000)
        shifts = range(-1100, 1101)
        match = [decoded[0, window.start + n : window.stop + n] @ sound[0, window] for n in shifts]
        assert shifts[int(np.argmax(match))] == 0
    error = decoded[:, :samples] - sound
    assert np.sqrt((error**2).mean()) < 0.1 * np.sqrt((sound**2).mean())


def check_picture(path: Path, video: DecodedVideo) -> DecodedVideo:
    """Every presented picture is presented, at its time after the first, which is at 0."""
    result = decode_video(path)
    assert result.start_s == 0
    assert relative_times(result) == pytest.approx(relative_times(video), abs=1e-5)
    assert result.info.rotation == video.info.rotation
    assert result.info.sample_aspect_ratio == video.info.sample_aspect_ratio
    with av.open(path) as container:
        assert make.seconds(container.duration, Fraction(1, av.time_base)) == pytest.approx(
            video.duration_s, abs=2e-5
        )
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    return result


@pytest.mark.parametrize("cut_s", [None, 0.31])
@pytest.mark.parametrize("name", [name for name in CLIPS if name != TOO_SHORT])
def test_reference_clips_keep_every_picture(
    clips: Path, tmp_path: Path, name: str, cut_s: float | None
) -> None:
    video = decode_video(clips / name, cut_s)
    result = muxed(video, tmp_path / "out.mp4")
    check_picture(tmp_path / "out.mp4", video)
    check_sound(tmp_path / "out.mp4", video.duration_s)
    assert result.copied == (
        name not in ["gif_10_1p2s.gif", "interl.mpg", "avi_h264_b.avi", "avi_mpeg4_b.avi"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


COPIED: dict[str, tuple[str, dict[str, Any]]] = {
    "H.264": ("a.mp4", {"options": B_FRAMES}),
    "H.264, Matroska": ("a.mkv", {"options": B_FRAMES}),
    "H.264, fragments": ("f.mp4", {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe"}}),
    "H.264, interlaced": ("i.mp4", {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}}),
    "H.264, Flash": ("a.flv", {"options": B_FRAMES}),
    "H.264, irregular": (
        "v.mkv",
        {"times": [0, 0.033, 0.1, 0.4, 0.41, 0.5, 1.7, 1.8], "stay_s": 0.25, "options": B_FRAMES},
    ),
    "HEVC": ("h.mp4", {"codec": "libx265", "options": X265}),
    "HEVC, Matroska": ("h.mkv", {"codec": "libx265", "options": X265}),
    "AV1": ("n.mp4", {"codec": "libsvtav1", "options": QUICK_AV1}),
    "AV1, Matroska": ("n.mkv", {"codec": "libsvtav1", "options": QUICK_AV1}),
    "VP9": ("v.webm", {"codec": "libvpx-vp9", "options": QUICK_VP9}),
    "VP9, MP4": ("v.mp4", {"codec": "libvpx-vp9", "options": QUICK_VP9}),
    "VP9, alpha": (
        "alpha.webm",
        {"codec": "libvpx-vp9", "pixel_format": "yuva420p", "options": {"auto-alt-ref": "0"}},
    ),
    "MPEG-4": ("m.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "MPEG-4, AVI": ("m.avi", {"codec": "mpeg4"}),
    "own sound is dropped": ("s.mp4", {"sound_s": 2.0}),
    "slides": ("slides.mp4", {"rate": 1, "frames": 3}),
}


@pytest.mark.parametrize("case", COPIED)
def test_packets_are_copied_bit_for_bit(tmp_path: Path, case: str) -> None:
    name, options = COPIED[case]
    path = make.render(tmp_path / name, **{"size": SQUARE, **options})
    video = decode_video(path)
    result = muxed(video, tmp_path / "out.mp4")
    assert (result.copied, result.reason) == (True, "")
    assert packets(tmp_path / "out.mp4") == packets(path)
    again = check_picture(tmp_path / "out.mp4", video)
    assert again.duration_s == pytest.approx(video.duration_s, abs=1e-4)
    check_sound(tmp_path / "out.mp4", video.duration_s)


@pytest.mark.parametrize("codec, options", [("libx264", B_FRAMES), ("libx265", X265)])
def test_a_transport_stream_is_copied_picture_by_picture(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    # Start codes become lengths, so that the bytes differ; the decoded pictures do not.
    path = make.render(tmp_path / "a.ts", codec=codec, options=options, size=SQUARE)
    assert muxed(decode_video(path), tmp_path / "out.mp4").copied
    assert decoded(tmp_path / "out.mp4") == decoded(path)


@pytest.mark.parametrize("options", [{"bf": "0"}, B_FRAMES])
def test_frames_with_one_time_are_copied_with_times_of_their_own(
    tmp_path: Path, options: dict[str, str]
) -> None:
    clip = make.render(tmp_path / "clip.mp4", frames=30, size=SQUARE, options=options)
    path = make.remux(clip, tmp_path / "twice.mkv", times=[n / 25 - n // 6 / 25 for n in range(30)])
    video = decode_video(path)
    assert muxed(video, tmp_path / "out.mp4").copied
    assert packets(tmp_path / "out.mp4") == packets(clip)
    check_picture(tmp_path / "out.mp4", video)
    with av.open(tmp_path / "out.mp4") as container:
        assert [make.number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)] == [
            *range(30)
        ]


@pytest.mark.parametrize("bframes", ["0", "3"])
def test_more_frames_with_one_time_than_the_output_can_tell_apart_are_kept(
    tmp_path: Path, bframes: str
) -> None:
    """At 1000 frames per second, 90 units of the output's clock are one interval."""
    times = [n / 1000 for n in range(101)] + [0.1] * 199 + [0.1 + n / 1000 for n in range(1, 101)]
    clip = make.render(tmp_path / "clip.mp4", frames=400, size=(16, 16), options={**B_FRAMES, "bf": bframes})
    video = decode_video(make.remux(clip, tmp_path / "many.mkv", times=times))
    assert video.duration_s == pytest.approx(0.24, abs=0.001)  # none after them moves; the last one stays
    # Under load, once, a frame did not name its packet: then all are encoded again, and none is lost.
    assert muxed(video, tmp_path / "out.mp4").copied or bframes != "0"
    check_picture(tmp_path / "out.mp4", video)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.ts"])
@pytest.mark.parametrize(
    "times", [[n / 25 for n in range(60)] + [2.8, 3.1], [0] + [1 + n / 25 for n in range(60)]]
)
@pytest.mark.parametrize("codec, options", [("libx264", B_FRAMES), ("libx265", X265)])
def test_the_frames_of_a_copy_last_as_long_as_its_sound(
    tmp_path: Path, codec: str, options: dict[str, str], times: list[float], name: str
) -> None:
    video = decode_video(make.render(tmp_path / name, codec=codec, options=options, times=times))
    assert muxed(video, tmp_path / "out.mp4").copied
    with av.open(tmp_path / "out.mp4") as container:
        lengths = [make.seconds(stream.duration, stream.time_base) for stream in container.streams]
    assert lengths == pytest.approx([video.duration_s] * 2, abs=1e-4)


def test_a_copy_of_jittering_frames_lasts_as_long_as_its_sound(tmp_path: Path) -> None:
    """By the times that Flash stores, the packet decoded last ends before the one that is shown before it."""
    first = [0, 58, 87, 141, 163, 206, 254, 287, 348, 378, 405, 449, 502, 523, 570]
    later = [617, 647, 707, 743, 778, 802, 846, 904, 922, 989, 1022, 1061, 1100, 1134, 1162]
    times = [time / 1000 for time in first + later]
    options = {"preset": "veryfast", "bf": "3", "b_strategy": "0", "refs": "2"}
    video = decode_video(make.render(tmp_path / "clip.flv", times=times, options=options))
    assert video.duration_s == pytest.approx(1.201, abs=1e-6)
    assert muxed(video, tmp_path / "out.mp4").copied
    with av.open(tmp_path / "out.mp4") as container:
        lengths = [make.seconds(stream.duration, stream.time_base) for stream in container.streams]
    assert lengths == pytest.approx([1.201] * 2, abs=1e-4)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
@pytest.mark.parametrize(
    "times, stay_s", [([n / 25 for n in range(20)], 2), ([*(n / 25 for n in range(20)), 1.5, 2.0], 0)]
)
def test_b_frames_of_which_a_copy_would_lose_the_length_are_encoded_again(
    tmp_path: Path, times: list[float], stay_s: float, name: str
) -> None:
    video = decode_video(make.render(tmp_path / name, options=B_FRAMES, times=times, stay_s=stay_s))
    result = muxed(video, tmp_path / "out.mp4")
    assert "would not last as long as the sound" in result.reason
    files = [tmp_path / "out.mp4"]
    if ffmpeg := shutil.which("ffmpeg"):
        files.append(tmp_path / "copy.mp4")
        subprocess.run([ffmpeg, "-v", "error", "-i", files[0], "-c", "copy", files[1]], check=True)
    for path in files:
        with av.open(path) as container:
            lengths = [make.seconds(stream.duration, stream.time_base) for stream in container.streams]
        assert lengths == pytest.approx([video.duration_s] * 2, abs=0.03)


def test_the_rate_that_a_container_claims_does_not_set_the_level(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mkv", codec="ffv1", rate=60_000, times=[n / 25 for n in range(25)])
    video = decode_video(path)
    assert video.timeline.rate == 25
    muxed(video, tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        extradata = container.streams.video[0].codec_context.extradata
        assert extradata and extradata[3] <= 11  # level_idc of an avcC record


def test_a_clock_that_starts_below_zero_is_moved_to_it(tmp_path: Path) -> None:
    clip = make.render(tmp_path / "clip.mp4", options={"bf": "0"})
    keep = {"avoid_negative_ts": "disabled"}
    video = decode_video(make.remux(clip, tmp_path / "clip.ts", shift_s=-0.5, container_options=keep))
    assert video.start_s == -0.5
    assert muxed(video, tmp_path / "out.mp4").copied
    check_picture(tmp_path / "out.mp4", video)


def decoded(path: Path) -> list[str]:
    with av.open(path) as container:
        return [hashlib.sha256(f.to_ndarray().tobytes()).hexdigest() for f in container.decode(video=0)]


def test_hevc_is_tagged_for_quicktime(tmp_path: Path) -> None:
    muxed(decode_video(make.render(tmp_path / "h.mkv", codec="libx265", options=X265)), tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def test_hevc_that_carries_its_parameters_in_its_packets_is_not_tagged_for_quicktime(tmp_path: Path) -> None:
    options = {"preset": "ultrafast", "x265-params": "log-level=none:repeat-headers=1"}
    path = make.render(tmp_path / "h.mp4", codec="libx265", options=options)
    content = bytearray(path.read_bytes())
    content[content.index(b"hvcC") + 4 + 22] = 0  # number of parameter sets in the header
    path.write_bytes(content)
    video = decode_video(path)
    assert muxed(video, tmp_path / "out.mp4").copied
    with av.open(tmp_path / "out.mp4") as container:
        assert container.streams.video[0].codec_context.codec_tag == "hev1"
    check_picture(tmp_path / "out.mp4", video)


def flash_pictures(path: Path, with_parameters: bool) -> bytes:
    """The tags of a Flash video that hold pictures, and those that hold coding parameters."""
    content, position, tags = path.read_bytes(), 13, b""
    while position < len(content):
        end = position + 11 + int.from_bytes(content[position + 1 : position + 4], "big") + 4
        is_picture, is_parameters = content[position] == 9, content[position + 12] == 0
        if is_picture and (with_parameters or not is_parameters):
            tags += content[position:end]
        position = end
    return tags


@pytest.mark.parametrize(
    "start_s, profile, reason",
    [
        (1.0, "baseline", "the coding parameters change"),
        (0.0, "high", "the packets do not correspond to the pictures one to one"),
    ],
)
def test_a_joined_recording_is_encoded_again(
    tmp_path: Path, start_s: float, profile: str, reason: str
) -> None:
    options = {"preset": "ultrafast", "bf": "0"}
    times = [n / 25 for n in range(25)]
    later = [start_s + time for time in times]
    first = make.render(tmp_path / "1.flv", times=times, options={**options, "profile": "high"})
    second = make.render(tmp_path / "2.flv", times=later, options={**options, "profile": profile})
    path = tmp_path / "joined.flv"
    path.write_bytes(first.read_bytes() + flash_pictures(second, with_parameters=profile != "high"))
    video = decode_video(path)
    assert video.frame_count == 50 and video.notes == ()
    assert muxed(video, tmp_path / "out.mp4").reason == reason
    check_picture(tmp_path / "out.mp4", video)


@pytest.mark.parametrize("frames_shown", range(8, 14))
def test_pictures_hidden_at_the_end_stay_hidden(tmp_path: Path, frames_shown: int) -> None:
    path = make.render(tmp_path / "clip.mp4", size=SQUARE, options=B_FRAMES)
    content = bytearray(path.read_bytes())
    position = content.index(b"elst") + 12
    content[position : position + 4] = (40 * frames_shown).to_bytes(4, "big")  # ms
    path.write_bytes(content)
    video = decode_video(path)
    assert video.duration_s == pytest.approx(frames_shown / 25) and not video.timeline.cut
    result = muxed(video, tmp_path / "out.mp4")
    assert (
        result.copied or result.reason == "an edit list hides some of the pictures that depend on each other"
    )
    check_picture(tmp_path / "out.mp4", video)


TRANSCODED: dict[str, tuple[str, dict[str, Any], str]] = {
    "VP8": ("old.webm", {"codec": "libvpx"}, "vp8"),
    "ProRes": ("edit.mov", {"codec": "prores_ks", "pixel_format": "yuv422p10le"}, "prores"),
    "Motion JPEG": ("camera.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}, "mjpeg"),
    "GIF": ("a.gif", {"codec": "gif", "pixel_format": "rgb8"}, "gif"),
    "odd sides": ("odd.mkv", {"codec": "ffv1", "size": (63, 47)}, "ffv1"),
    "irregular": ("v.mkv", {"codec": "ffv1", "times": [0, 0.033, 0.1, 0.4, 0.41, 0.5, 1.7, 1.8]}, "ffv1"),
    "MPEG-2": ("disc.mpg", {"codec": "mpeg2video", "container_format": "mpeg"}, "mpeg2video"),
    "raw H.264": ("raw.h264", {"options": B_FRAMES}, "does not store when pictures are shown"),
    "AVI with B-frames": ("b.avi", {"codec": "mpeg4", "options": {"bf": "2"}}, "AVI does not store"),
}


@pytest.mark.parametrize("cut_s", [None, 0.47])
@pytest.mark.parametrize("case", TRANSCODED)
def test_what_mp4_cannot_hold_is_encoded_again_and_said(
    tmp_path: Path, case: str, cut_s: float | None
) -> None:
    name, options, reason = TRANSCODED[case]
    video = decode_video(make.render(tmp_path / name, **{"size": SQUARE, **options}), cut_s)
    result = muxed(video, tmp_path / "out.mp4")
    assert not result.copied and reason in result.reason
    again = check_picture(tmp_path / "out.mp4", video)
    assert again.info.codec == "h264"
    assert again.info.pixel_format in ("yuv420p", "yuvj420p")  # the latter is the former in full range
    assert again.info.width == video.info.width + video.info.width % 2
    assert again.duration_s == pytest.approx(video.duration_s, abs=1e-4)
    check_sound(tmp_path / "out.mp4", video.duration_s)
    # The same pictures, to the eye: the mean error stays below two of 255 steps.
    error = (again.frames["clip"].float() - video.frames["clip"].float()).abs().mean()
    assert len(again.frames["clip"]) == len(video.frames["clip"])
    if video.start_s == 0 and case != "odd sides":  # else other pictures, or another scale, are compared
        assert error < 2


def test_odd_sides_gain_a_copy_of_their_last_row_and_column(tmp_path: Path) -> None:
    slope = np.add.outer(np.arange(47) * 2, np.arange(63)).astype(np.uint8)[..., None].repeat(3, 2)
    path = make.render(tmp_path / "odd.mkv", codec="ffv1", size=(63, 47), draw=lambda *_: slope)
    muxed(decode_video(path), tmp_path / "out.mp4")
    with av.open(path) as before, av.open(tmp_path / "out.mp4") as after:
        for old, new in zip(before.decode(video=0), after.decode(video=0), strict=True):
            picture = new.to_ndarray(format="gray").astype(int)
            assert picture.shape == (48, 64)
            assert abs(picture[:47, :63] - old.to_ndarray(format="gray")).mean() < 2
            assert abs(picture[:, 63] - picture[:, 62]).max() < 8
            assert abs(picture[47] - picture[46]).max() < 8


@pytest.mark.parametrize(
    "name, codec, pixel_format, copied",
    [
        ("phone.mov", "libx264", "yuv420p", True),
        ("phone.mp4", "libvpx-vp9", "yuv420p", True),  # the aspect is in the container alone
        ("phone.mov", "prores_ks", "yuv422p10le", False),
    ],
)
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_and_aspect_are_kept(
    tmp_path: Path, name: str, codec: str, pixel_format: str, copied: bool, rotation: int
) -> None:
    path = make.render(
        tmp_path / name,
        codec=codec,
        pixel_format=pixel_format,
        rotation=rotation,
        sample_aspect_ratio=Fraction(4, 3),
    )
    video = decode_video(path)
    assert (video.info.rotation, video.info.sample_aspect_ratio) == (rotation, Fraction(4, 3))
    assert muxed(video, tmp_path / "out.mp4").copied == copied
    check_picture(tmp_path / "out.mp4", video)


@pytest.mark.parametrize("codec, copied", [("libx264", True), ("ffv1", False)])
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("primaries, transfer, matrix", [(1, 1, 1), (6, 6, 6), (9, 16, 9)])
def test_colour_tags_are_kept(
    tmp_path: Path, codec: str, copied: bool, color_range: int, primaries: int, transfer: int, matrix: int
) -> None:
    path = make.render(
        tmp_path / "clip.mkv",
        codec=codec,
        draw=lambda index, width, height: np.full((height, width, 3), (200, 60, 20 + index), np.uint8),
        color_range=color_range,
        color_primaries=primaries,
        color_trc=transfer,
        colorspace=matrix,
    )
    video = decode_video(path)
    assert muxed(video, tmp_path / "out.mp4").copied == copied
    with av.open(tmp_path / "out.mp4") as container:
        frame = next(container.decode(video=0))
        assert (frame.color_range, frame.color_primaries) == (color_range, primaries)
        assert (frame.color_trc, frame.colorspace) == (transfer, matrix)
    again = decode_video(tmp_path / "out.mp4")
    # And mean the same: no conversion slipped in.
    assert (again.frames["clip"].int() - video.frames["clip"].int()).abs().max() <= 6


# A logarithmic curve, YCgCo, BT.2020 with constant luminance.
@pytest.mark.parametrize("primaries, transfer, matrix", [(2, 9, 2), (2, 2, 8), (9, 14, 10)])
def test_a_picture_whose_colours_no_conversion_knows_is_copied(
    tmp_path: Path, primaries: int, transfer: int, matrix: int
) -> None:
    clip = make.render(
        tmp_path / "clip.mp4", size=SQUARE, color_primaries=primaries, color_trc=transfer, colorspace=matrix
    )
    check_strange_colors(clip, (primaries, transfer, matrix))
    assert muxed(decode_video(clip), tmp_path / "out.mp4").copied


@pytest.mark.parametrize(
    "tags", [(0, 2, 2), (3, 2, 2), (2, 0, 2), (2, 3, 2), (2, 2, 3), (9, 16, 14), (113,) * 3]
)
def test_a_picture_whose_colours_no_conversion_knows_is_encoded_again(
    tmp_path: Path, tags: tuple[int, int, int]
) -> None:
    clip = make.render(tmp_path / "clip.mov", codec="prores_ks", pixel_format="yuv422p10le", size=SQUARE)
    head, *pictures = clip.read_bytes().split(
        b"icpf"
    )  # of each picture's header, bytes 14 to 16 are the tags
    clip.write_bytes(b"icpf".join([head, *(each[:14] + bytes(tags) + each[17:] for each in pictures)]))
    check_strange_colors(clip, tags)
    assert not muxed(decode_video(clip), tmp_path / "out.mp4").copied
    assert decode_video(tmp_path / "out.mp4").frame_count == 25


def check_strange_colors(clip: Path, tags: tuple[int, int, int]) -> None:
    with av.open(clip) as container:
        frame = next(container.decode(video=0))
        assert (frame.color_primaries, frame.color_trc, frame.colorspace) == tags
    pictures = decode_video(clip).frames["sync"].numpy()
    assert [make.number_of(picture) for picture in pictures] == [*range(24), 23]


def test_hdr_metadata_is_kept_by_a_copy(tmp_path: Path) -> None:
    light = (
        "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
    )
    options = {"preset": "ultrafast", "x265-params": f"log-level=none:{HDR}:hdr10=1:{light}"}
    path = make.render(tmp_path / "hdr.mkv", codec="libx265", pixel_format="yuv420p10le", options=options)
    assert muxed(decode_video(path), tmp_path / "out.mp4").copied

    def hdr(path: Path) -> dict[SideData, bytes]:
        with av.open(path) as container:
            frame = next(container.decode(video=0))
            kinds = (SideData.MASTERING_DISPLAY_METADATA, SideData.CONTENT_LIGHT_LEVEL)
            # PyAV's stub knows one kind of them.
            return {kind: bytes(frame.side_data[kind]) for kind in kinds}  # type: ignore[literal-required]

    assert hdr(tmp_path / "out.mp4") == hdr(path)


def interlaced(path: Path, size: tuple[int, int]) -> Path:
    """A bar that moves by 8 pixels from one field to the next, encoded as fields."""

    def draw(index: int, width: int, height: int) -> np.ndarray:
        picture = np.zeros((height, width, 3), np.uint8)
        for field in (0, 1):
            left = 8 * (2 * index + field) % width
            picture[field::2, left : left + 8] = 255
        return picture

    return make.render(path, size=size, draw=draw, options={"x264-params": "tff=1", "crf": "10"})


def combing(path: Path, index: int = 5) -> float:
    """How much neighbouring lines differ more than lines of one field do."""
    with av.open(path) as container:
        lines = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)][index]
    return abs(lines[1:-1] - lines[:-2]).mean() - abs(lines[2:] - lines[:-2]).mean()


def test_interlaced_pictures_that_must_be_encoded_again_are_deinterlaced(tmp_path: Path) -> None:
    path = interlaced(tmp_path / "tv.h264", SQUARE)
    video = decode_video(path)
    muxed(video, tmp_path / "out.mp4")
    assert combing(path) > 40 and combing(tmp_path / "out.mp4") < 15
    check_picture(tmp_path / "out.mp4", video)


def test_interlaced_pictures_of_changing_size_are_all_kept(tmp_path: Path) -> None:
    parts = [interlaced(tmp_path / f"{side}.h264", (side, side)) for side in (64, 128)]
    (tmp_path / "joined.h264").write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    video = decode_video(tmp_path / "joined.h264")
    assert video.frame_count == 50 and not video.timeline.constant_shape
    muxed(video, tmp_path / "out.mp4")
    check_picture(tmp_path / "out.mp4", video)
    assert combing(tmp_path / "out.mp4", 40) < 15


def test_not_every_picture_is_a_key_frame_because_the_input_s_are(tmp_path: Path) -> None:
    path = make.render(tmp_path / "camera.avi", codec="mjpeg", pixel_format="yuvj420p")
    muxed(decode_video(path), tmp_path / "out.mp4")
    with av.open(path) as before, av.open(tmp_path / "out.mp4") as after:
        assert all(packet.is_keyframe for packet in before.demux(video=0) if packet.size)
        assert sum(packet.is_keyframe for packet in after.demux(video=0) if packet.size) < 5


def test_rgb_becomes_the_colours_that_players_expect(tmp_path: Path) -> None:
    color = (200, 60, 20)
    path = make.render(
        tmp_path / "a.mkv",
        codec="ffv1",
        pixel_format="bgr0",
        draw=lambda index, width, height: np.full((height, width, 3), color, np.uint8),
    )
    muxed(decode_video(path), tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
    luma, blue, red = (frame.to_ndarray()[row, 0] for row in (0, 48, 60))
    assert luma == pytest.approx(16 + 219 / 255 * np.dot((0.2126, 0.7152, 0.0722), color), abs=2)
    assert red > 128 > blue


@pytest.mark.parametrize("clock", ["1/25", "1001/30000", "1/90000", "1/12800", "1/1000", "1/1200000"])
def test_every_time_of_the_input_can_be_written_and_the_end_to_half_a_sample(clock: str) -> None:
    unit = _output_time_base(Fraction(clock))
    assert (Fraction(clock) / unit).denominator == 1
    assert unit <= Fraction(1, 2 * SAMPLE_RATE)
    assert MAX_DURATION_S / unit < 2**32


def test_a_clock_too_fine_for_mp4_is_coarsened() -> None:
    assert _output_time_base(Fraction(1, 10**9)) == Fraction(1, 90_000)


SHOWN = [0, 40, 160, 80, 120, 320, 200, 240, 280]  # in the order of decoding
STORED = [-80, -40, 0, 40, 80, 120, 160, 200, 240]


def test_decoding_times_are_the_stored_ones_where_these_are_usable() -> None:
    assert _decoding_times(SHOWN, STORED, 360, make.MILLISECOND) == [*STORED, 280]


@pytest.mark.parametrize(
    "stored", [[None, None, *STORED[2:]], STORED[::-1], [400, *STORED[1:]], [time + 60 for time in STORED]]
)
@pytest.mark.parametrize(
    "shown, end",
    [
        (SHOWN, 360),
        (SHOWN, 325),  # a cut within the last frame
        ([time + 500 * (time >= 160) for time in SHOWN], 860),
        ([time + 500 * (time >= 40) for time in SHOWN], 860),
        ([0, 80, 40, 120, 390, 160], 430),  # a pause before the frame that is shown last, not decoded last
    ],
)
def test_decoding_times_are_none_too_late_and_as_long_as_the_video(
    shown: list[int], end: int, stored: list[int | None]
) -> None:
    times = _decoding_times(shown, stored, end, make.MILLISECOND)
    assert times is not None
    assert times == sorted(set(times)) and len(times) == len(shown) + 1
    assert all(decoded <= pts for decoded, pts in zip(times, shown, strict=False))
    assert -times[0] <= max(160, max(shown) - shown[-1])  # no earlier than needed
    assert times[-1] - times[0] == end
    durations = [after - time for time, after in pairwise(times)]
    assert max(pts + duration for pts, duration in zip(shown, durations, strict=True)) == end
    assert durations[-1] == pytest.approx(end / len(shown), abs=50)  # which tools take it for


@pytest.mark.parametrize(
    "shown, end",
    [
        (SHOWN, 2000),  # the last frame stays
        ([time + 500 * (time >= 280) for time in SHOWN], 2000),  # a pause before the last two
        ([0, 160, 40, 80, 120, 3000, 2990], 3010),
    ],
)
def test_no_decoding_times_are_given_that_would_not_last(shown: list[int], end: int) -> None:
    stored: list[int | None] = [40 * index - 80 for index in range(len(shown))]
    assert _decoding_times(shown, stored, end, make.MILLISECOND) is None


def test_frames_decoded_as_they_are_shown_may_stay_for_any_time() -> None:
    assert _decoding_times([0, 40], [-80, -40], 300, make.MILLISECOND) == [0, 40, 300]


def test_hidden_pictures_stay_hidden(tmp_path: Path) -> None:
    long = make.render(tmp_path / "long.mp4", frames=50, size=SQUARE, options={**B_FRAMES, "g": "250"})
    path = make.remux(long, tmp_path / "trimmed.mp4", shift_s=-1.0)
    video = decode_video(path)
    assert muxed(video, tmp_path / "out.mp4").copied
    assert packets(tmp_path / "out.mp4") == packets(path)  # those needed for decoding included
    again = check_picture(tmp_path / "out.mp4", video)
    assert make.number_of(again.frames["sync"][0].numpy()) == 25


@pytest.mark.parametrize("frames_shown", range(3, 20))
def test_a_cut_ends_with_its_last_picture_wherever_it_falls(tmp_path: Path, frames_shown: int) -> None:
    path = make.render(tmp_path / "clip.mp4", frames=25, size=SQUARE, options=B_FRAMES)
    video = decode_video(path, frames_shown / 25 - 0.01)
    result = muxed(video, tmp_path / "out.mp4")
    again = check_picture(tmp_path / "out.mp4", video)
    assert again.frame_count == frames_shown
    assert make.number_of(again.frames["sync"][-1].numpy()) <= frames_shown - 1
    assert result.copied or "cut falls between" in result.reason
    if result.copied:
        assert packets(tmp_path / "out.mp4") == packets(path)[:frames_shown]
    check_sound(tmp_path / "out.mp4", video.duration_s)


def test_a_damaged_video_is_encoded_again(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 120, 160, 3), dtype=np.uint8)
    path = make.render(
        tmp_path / "clip.mp4",
        frames=50,
        size=(160, 120),
        draw=lambda index, width, height: noise[index],
        container_options={"movflags": "faststart"},
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = decode_video(path)
    assert muxed(video, tmp_path / "out.mp4").reason == "the video is damaged"
    assert decode_video(tmp_path / "out.mp4").notes == ()
    check_picture(tmp_path / "out.mp4", video)


@pytest.mark.parametrize(
    "name, codec, pixel_format, sizes, final",
    [
        ("clip.h264", "libx264", "yuv420p", [(64, 64), (128, 96)], (128, 96)),
        ("clip.h264", "libx264", "yuv420p", [(128, 64), (64, 128)], (128, 128)),
        ("clip.mjpeg", "mjpeg", "yuvj420p", [(63, 47), (128, 96)], (128, 96)),
        ("clip.mjpeg", "mjpeg", "yuvj420p", [(128, 96), (63, 47)], (128, 96)),
    ],
)
def test_a_size_that_changes_is_brought_to_one_that_loses_no_detail(
    tmp_path: Path,
    name: str,
    codec: str,
    pixel_format: str,
    sizes: list[tuple[int, int]],
    final: tuple[int, int],
) -> None:
    path = tmp_path / name
    parts = [
        make.render(path, codec=codec, pixel_format=pixel_format, size=size).read_bytes() for size in sizes
    ]
    path.write_bytes(b"".join(parts))
    video = decode_video(path)
    (width, height), (later_width, later_height) = sizes
    said = (
        f"the frame size changes ({width}x{height}, {later_width}x{later_height}); "
        f"all frames are scaled to fit {final[0]}x{final[1]}"
    )
    mjpeg = "" if codec == "libx264" else "MP4 is not made for mjpeg pictures; "
    assert muxed(video, tmp_path / "out.mp4").reason == mjpeg + said
    again = check_picture(tmp_path / "out.mp4", video)
    assert again.timeline.constant_shape and (again.info.width, again.info.height) == final
    with av.open(tmp_path / "out.mp4") as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for index, picture in enumerate(pictures):
        width, height = sizes[index // 25]
        scale = min(final[0] / width, final[1] / height)
        left, top = (round(final[0] - width * scale) // 2, round(final[1] - height * scale) // 2)
        assert make.number_of(picture[top : final[1] - top, left : final[0] - left]) == index % 25
        assert picture[: max(top - 1, 0)].max(initial=0) < 40  # black borders
        assert picture[:, : max(left - 1, 0)].max(initial=0) < 40


def oriented(path: Path, rotation: int) -> bytes:
    """Encoded frames of which each key frame carries a message that turns them (H.264 SEI, D.1.27)."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        turn = av.BitStreamFilterContext(
            f"h264_metadata=display_orientation=insert:rotate={rotation}", in_stream=stream
        )
        coded = [packet for packet in container.demux(stream) if packet.size]
        return b"".join(bytes(turned) for packet in coded for turned in turn.filter(packet))


@pytest.mark.parametrize("rotations", [(0, 90), (90, 0), (180, 270), (90, 90)])
def test_a_message_turns_all_frames_up_to_the_next_key_frame(
    tmp_path: Path, rotations: tuple[int, int]
) -> None:
    clip = make.render(tmp_path / "clip.h264", frames=12, size=(160, 96), options={"bf": "0"})
    path = tmp_path / "phone.h264"
    path.write_bytes(b"".join(oriented(clip, rotation) for rotation in rotations))
    video = decode_video(path)
    assert [shape.rotation for shape in video.timeline.shapes] == list(dict.fromkeys(rotations))
    reason = muxed(video, tmp_path / "out.mp4").reason
    again = decode_video(tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 24
    if len(set(rotations)) == 1:
        assert "changes" not in reason and again.info.rotation == rotations[0]
        assert [make.number_of(frame) for frame in frames] == [*range(12)] * 2
        return
    assert "the rotation changes" in reason and again.info.rotation == 0
    for index, frame in enumerate(frames):
        rotation = rotations[index // 12]
        stored = np.rot90(frame, -rotation // 90)
        top = (stored.shape[0] - 96) // 2
        assert make.number_of(stored[top : top + 96]) == index % 12


def test_metadata_is_read_back(clips: Path, tmp_path: Path) -> None:
    texts = {"seed": "0", "caption": 'Rain, "heavy"\nand thunder: ü 雨', "cot": "x" * 5000, "preset": "tiny"}
    muxed(decode_video(clips / "cfr25_1p0s.mp4"), tmp_path / "out.mp4", **texts, odd="a\0b")
    with av.open(tmp_path / "out.mp4") as container:
        assert {key: container.metadata[key] for key in texts} == texts
        assert container.metadata["odd"] == "a b"  # the file's texts end at a null character


def test_the_index_comes_first(clips: Path, tmp_path: Path) -> None:
    muxed(decode_video(clips / "cfr25_1p0s.mp4"), tmp_path / "out.mp4")
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("name", ["cfr25_1p0s.mp4", "gif_10_1p2s.gif"])
def test_the_same_request_gives_the_same_bytes(clips: Path, tmp_path: Path, name: str) -> None:
    video = decode_video(clips / name)
    muxed(video, tmp_path / "a.mp4", seed="1")
    muxed(video, tmp_path / "b.mp4", seed="1")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_silence_works(clips: Path, tmp_path: Path) -> None:
    video = decode_video(clips / "cfr25_1p0s.mp4")
    mux(video, torch.zeros(2, 44_100, dtype=torch.int16), SAMPLE_RATE, tmp_path / "out.mp4", {})
    with av.open(tmp_path / "out.mp4") as container:
        assert all(not frame.to_ndarray().any() for frame in container.decode(audio=0))


def test_an_unusable_output_is_refused_and_the_input_never_replaced(clips: Path, tmp_path: Path) -> None:
    video = decode_video(clips / "cfr25_1p0s.mp4")
    for output, message in [
        (tmp_path / "out.avi", "use .mp4"),
        (tmp_path / "absent" / "out.mp4", "does not exist"),
        (clips / "cfr25_1p0s.mp4", "would replace an input"),
    ]:
        with pytest.raises(OutputError, match=message):
            muxed(video, output)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match="directory"):
        muxed(video, tmp_path / "folder.mp4")


@pytest.mark.parametrize("other", ["gif_10_1p2s.gif", "cfr25_10p04s.mp4"])
def test_another_video_under_the_same_name_is_not_given_the_sound(
    clips: Path, tmp_path: Path, other: str
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes((clips / "cfr25_1p0s.mp4").read_bytes())
    video = decode_video(clip)
    clip.write_bytes((clips / other).read_bytes())
    with pytest.raises(MediaError, match="changed since it was read; start again"):
        muxed(video, tmp_path / "out.mp4")
    clip.unlink()
    with pytest.raises(MediaError, match="no such file"):
        muxed(video, tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_names_are_only_names(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video = decode_video(clips / "cfr25_1p0s.mp4")
    for name in ["-out.mp4", "with space and 'quote'.mp4", "tee:a|b.mp4", "ü.MP4"]:
        muxed(video, Path(name))
        assert decode_video(name).frame_count == 25


def test_an_interruption_leaves_the_old_file(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)  # everything is written, nothing moved yet
    with pytest.raises(KeyboardInterrupt):
        muxed(decode_video(clips / "cfr25_1p0s.mp4"), target)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
@pytest.mark.parametrize("name", ["cfr30_3p2s.mp4", "gif_10_1p2s.gif"])
def test_a_full_disk_gives_one_message_and_no_file(clips: Path, tmp_path: Path, name: str) -> None:
    """The limit is moved through the file, to its very last byte."""
    program = """
import pathlib, resource, signal, sys, torch
from thinksound.errors import MediaError, OutputError
from thinksound.media.decode import decode_video
from thinksound.media.mux import mux
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
video, output = decode_video(sys.argv[1], ()), pathlib.Path(sys.argv[2])
sound = torch.randint(-9999, 9999, (2, round(44_100 * video.duration_s)), dtype=torch.int16)
mux(video, sound, 44_100, output, {})
size = output.stat().st_size
output.unlink()
for limit in (0, 1, 40, 1000, size // 3, size // 2, size - 5000, size - 100, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        mux(video, sound, 44_100, output, {})
        print("written under", limit, "of", size)
    except OutputError as error:
        assert "limit on file sizes" in str(error), error
    assert list(output.parent.iterdir()) == []
"""
    result = subprocess.run(
        [sys.executable, "-c", program, clips / name, tmp_path / "out.mp4"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
