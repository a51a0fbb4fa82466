"""What a file is found to contain, and the messages for files that are no video."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from support import clips as make
from support.decoded import decode_video

from thinksound.errors import MediaError
from thinksound.media.probe import MAX_SIDE, _count_frames, probe


def test_a_phone_video_is_described(tmp_path: Path) -> None:
    path = make.render(tmp_path / "phone.mp4", rate=Fraction(30_000, 1001), rotation=90, sound_s=1.0)
    info = probe(path)
    assert (info.codec, info.width, info.height, info.pixel_format) == ("h264", 64, 48, "yuv420p")
    assert info.rotation == 90 and info.sample_aspect_ratio == 1
    assert info.average_rate == Fraction(30_000, 1001)
    assert info.container_duration_s == pytest.approx(1.0, abs=0.2)
    assert info.streams == ("video: h264 64x48 yuv420p, 29.97 fps", "audio: aac 44100 Hz, stereo")


@pytest.mark.parametrize(
    "name", ["rotated90_30_1p0s.mp4", "rotated180_30_1p0s.mp4", "rotated270_30_1p0s.mp4"]
)
def test_rotation_is_the_one_of_the_reference(clips: Path, frames_reference: dict, name: str) -> None:
    assert probe(clips / name).rotation == frames_reference[name]["display_rotation"] % 360


def test_sample_aspect_is_reported(clips: Path) -> None:
    assert probe(clips / "sar.mp4").sample_aspect_ratio == Fraction(4, 3)


def test_the_duration_tag_of_a_matroska_file_is_read(tmp_path: Path) -> None:
    assert _announced_by(tmp_path, "01:02:03.5") == 3723.5


@pytest.mark.parametrize(
    "tag",
    ["9" * 400 + ":0:1", "0:0:" + "9" * 400, "0:0:1e400", "0:0:nan", "-1:0:1", "99:99:99.9", "a:b:c", "0:1"],
)
def test_nonsense_in_a_duration_tag_is_ignored(tmp_path: Path, tag: str) -> None:
    assert _announced_by(tmp_path, tag) == pytest.approx(1.0)  # by the container


def _announced_by(folder: Path, tag: str) -> float | None:
    """What the probe reads from a file whose Tags element is written anew (RFC 9559, section 5.1.8)."""
    path = make.render(folder / "clip.mkv")
    content = path.read_bytes()
    start = content.index(b"\x12\x54\xc3\x67")
    track = content[content.index(b"\x73\xc5", 0) :][:11]  # TrackUID: its size and 8 bytes
    texts = _element(b"\x45\xa3", b"DURATION") + _element(b"\x44\x87", tag.encode())
    targets = _element(b"\x63\xc0", b"\x63\xc5" + track[2:])
    tags = _element(b"\x12\x54\xc3\x67", _element(b"\x73\x73", targets + _element(b"\x67\xc8", texts)))
    segment = content.index(b"\x18\x53\x80\x67") + 4
    # A segment of unknown size; the tag that was there gets another name.
    hidden = content[:segment] + b"\x01" + b"\xff" * 7 + content[segment + 8 : start]
    path.write_bytes(hidden + tags + content[start:].replace(b"DURATION", b"DURATIOX"))
    return probe(path).announced_end_s


def _element(kind: bytes, content: bytes) -> bytes:
    return kind + (len(content) | 1 << 56).to_bytes(8, "big") + content


def test_a_cover_beside_moving_pictures_is_not_chosen(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(path, "w") as output:
        cover = output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        film = output.add_stream("libx264", rate=25)
        film.width, film.height = 64, 48
        output.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        for index in range(10):
            output.mux(film.encode(av.VideoFrame.from_ndarray(make.numbered(index, 64, 48))))
        output.mux(film.encode(None))
    assert (probe(path).codec, probe(path).width) == ("h264", 64)


def tracks(path: Path, *sources: Path, default: int | None = None, kind: str = "video") -> Path:
    """Copy one stream of each file into another file, in this order."""
    with av.open(path, "w") as output:
        packets = []
        for index, source in enumerate(sources):
            with av.open(source) as container:
                stream = next(stream for stream in container.streams if stream.type == kind)
                copy = output.add_stream_from_template(stream, opaque=True)
                if default is not None:
                    copy.disposition = Disposition.default if index == default else Disposition(0)
                for packet in container.demux(stream):
                    if packet.dts is not None:
                        packets.append((packet.dts * packet.time_base, copy, packet))
        for _, copy, packet in sorted(packets, key=lambda entry: entry[0]):
            packet.stream = copy
            output.mux(packet)
    return path


FRAGMENTS = "a-fragmented.mp4"


@pytest.mark.parametrize(
    ("name", "codec", "frames"),
    [
        ("a.mp4", "mjpeg", 1),
        ("a.mp4", "png", 3),
        ("a.mov", "libx264", 1),
        ("a.mkv", "mjpeg", 1),
        ("a.mkv", "libx264", 3),
        ("a.avi", "mjpeg", 1),
        ("a.ts", "libx264", 1),
        (FRAGMENTS, "libx264", 1),
    ],
)
def test_a_cover_stored_as_an_ordinary_track_does_not_hide_the_film(
    tmp_path: Path, name: str, codec: str, frames: int
) -> None:
    pixel_format = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
    cover = make.render(
        tmp_path / "cover.mov", codec=codec, pixel_format=pixel_format, size=(128, 96), frames=frames
    )
    film = make.render(tmp_path / "film.mkv", codec="mpeg4" if name == "a.avi" else "libx264", frames=40)
    path = tracks(tmp_path / name, cover, film, default=0)
    if name == FRAGMENTS:
        with (
            av.open(path) as source,
            av.open(
                tmp_path / "f.mp4", "w", container_options={"movflags": "empty_moov+frag_keyframe"}
            ) as output,
        ):
            copies = [output.add_stream_from_template(stream, opaque=True) for stream in source.streams]
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    output.mux(packet)
        path = tmp_path / "f.mp4"
    info = probe(path)
    assert (info.width, info.height, info.choice) == (64, 48, "")


@pytest.mark.parametrize("name", ["two.mkv", "two.mp4"])
def test_the_default_one_of_two_video_tracks_is_used(tmp_path: Path, name: str) -> None:
    first = make.render(tmp_path / "first.mkv", frames=12)
    second = make.render(tmp_path / "second.mkv", frames=30, size=(128, 96))
    video = decode_video(tracks(tmp_path / name, first, second, default=1))
    assert (video.info.width, video.frame_count) == (128, 30)
    assert [stream.endswith(", used") for stream in video.info.streams] == [False, True]
    assert video.notes == (
        f"{tmp_path / name}: 2 video tracks move; track 2 (h264, 128x96), the default one, is used, "
        "not track 1 (h264, 64x48)",
    )
    assert probe(tracks(tmp_path / name, first, second, default=0)).width == 64


def test_the_first_of_several_programs_is_used(tmp_path: Path) -> None:
    first = make.render(tmp_path / "first.mkv")
    second = make.render(tmp_path / "second.mkv", size=(128, 96))
    info = probe(tracks(tmp_path / "two.ts", first, second))
    assert info.width == 64 and "the first, is used" in info.choice


def test_choosing_between_tracks_does_not_read_a_whole_file(tmp_path: Path) -> None:
    cover = make.render(tmp_path / "cover.mkv", frames=1)
    film = make.render(tmp_path / "film.mkv", frames=2000)
    path = tracks(tmp_path / "a.mkv", cover, film, default=0)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    assert _count_frames(path, [0, 1]) == _count_frames(cut, [0, 1]) == {0: 1, 1: 100}


@pytest.mark.parametrize("name", ["a.avif", "animation.mp4"])
def test_an_animated_avif_moves(tmp_path: Path, name: str) -> None:
    pictures = [Image.fromarray(make.numbered(index, 64, 48)) for index in range(12)]
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": 100}
    pictures[0].save(tmp_path / name, format="AVIF", **options)
    video = decode_video(tmp_path / name)
    assert (video.frame_count, video.duration_s, video.notes) == (12, pytest.approx(1.2), ())


def picture(path: Path, **options: Any) -> Path:
    Image.fromarray(make.numbered(5, 64, 48)).save(path, **options)
    return path


def truncated(path: Path, share: float) -> Path:
    make.render(path)
    os.truncate(path, int(path.stat().st_size * share))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mp3_with_cover(path: Path) -> Path:
    sound = make.render_sound(path.with_name("plain.mp3"), codec="libmp3lame")
    with av.open(sound) as source, av.open(path, "w") as output:
        copy = output.add_stream_from_template(source.streams.audio[0])
        cover = output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(make.numbered(5, 64, 48))
        output.mux([*cover.encode(frame), *cover.encode(None)])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    return path


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nok.mp4\n#EXT-X-ENDLIST\n"

NOT_VIDEOS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a missing file": (lambda folder: folder / "absent.mp4", "no such file"),
    "a directory": (lambda folder: folder, "directory"),
    "an empty file": (lambda folder: written(folder / "empty.mp4", b""), "empty"),
    "a text file": (lambda folder: written(folder / "notes.txt", b"hello\n" * 100), "text file"),
    "a text file called mp4": (lambda folder: written(folder / "notes.mp4", b"hello\n" * 100), "text file"),
    "zeros": (lambda folder: written(folder / "zeros.mp4", bytes(5000)), "not a video"),
    "m4a": (lambda folder: make.render_sound(folder / "a.m4a"), r"no video stream \(1 audio stream found\)"),
    "wav": (
        lambda folder: make.render_sound(folder / "a.wav", codec="pcm_s16le"),
        r"no video stream \(1 audio stream found\)",
    ),
    "mp3 with a cover": (
        lambda folder: mp3_with_cover(folder / "a.mp3"),
        r"no video stream \(1 audio stream, 1 cover picture found\)",
    ),
    "png": (lambda folder: picture(folder / "p.png"), r"still picture \(PNG\)"),
    "jpeg": (lambda folder: picture(folder / "p.jpg"), r"still picture \(JPEG\)"),
    "png called mp4": (lambda folder: picture(folder / "p.mp4", format="PNG"), r"still picture \(PNG\)"),
    "webp": (lambda folder: picture(folder / "p.webp"), r"still picture \(WEBP\)"),
    "gif with one frame": (lambda folder: picture(folder / "p.gif"), "still picture"),
    "avif": (lambda folder: picture(folder / "p.avif"), "still picture"),
    "avif called mp4": (lambda folder: picture(folder / "p.mp4", format="AVIF"), "AVIF"),
    "heic": (
        lambda folder: written(
            folder / "p.heic", picture(folder / "p.avif").read_bytes().replace(b"ftypavif", b"ftypheic")
        ),
        "HEIF",
    ),
    "pictures for two eyes": (
        lambda folder: picture(
            folder / "p.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))] * 2
        ),
        r"still picture \(MPO\)",
    ),
    "a motion photo": (
        lambda folder: written(
            folder / "p.mp4",
            picture(folder / "p.jpg").read_bytes() + make.render(folder / "film.mp4").read_bytes(),
        ),
        "motion photo",
    ),
    "mp4 without index": (lambda folder: truncated(folder / "half.mp4", 0.5), "index is missing"),
    "a playlist": (lambda folder: written(folder / "list.m3u8", PLAYLIST), "playlist"),
    "a playlist called mp4": (lambda folder: written(folder / "list.mp4", PLAYLIST), "playlist"),
    "a list of files": (
        lambda folder: written(folder / "list.ffconcat", b"ffconcat version 1.0\nfile ok.mp4\n"),
        "playlist",
    ),
    "two pixels": (
        lambda folder: make.render(folder / "dot.mp4", size=(2, 2)),
        "2x2 pixels; allowed are 4 to",
    ),
    "a thread": (
        lambda folder: make.render(folder / "thread.mkv", codec="ffv1", size=(512, 8)),
        "at most 32:1",
    ),
    "a wall": (
        lambda folder: make.render(folder / "w.mkv", codec="ffv1", size=(MAX_SIDE + 16, 1024), frames=1),
        "16400x1024 pixels",
    ),
    "a name that is too long": (lambda folder: folder / ("x" * 300), "check the name"),
    "a null character": (lambda folder: folder / "a\0b.mp4", r"a\\x00b.mp4"),
}


@pytest.mark.parametrize("case", NOT_VIDEOS)
def test_what_is_no_video_gets_one_clear_message(tmp_path: Path, case: str) -> None:
    make.render(tmp_path / "ok.mp4")  # which the playlists name
    build, message = NOT_VIDEOS[case]
    with pytest.raises(MediaError, match=message) as caught:
        probe(build(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_animation_is_said_to_be_damaged(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), (20 * index, 0, 0)) for index in range(5)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:])
    content = bytearray((tmp_path / "a.png").read_bytes())
    second = content.index(b"fcTL", content.index(b"fcTL") + 1)
    content[second - 1] += 1  # the length of the block that begins the second picture
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MediaError, match=r"damaged \(no picture can be decoded\)"):
        decode_video(tmp_path / "a.png")


def test_a_damaged_file_that_ffmpeg_calls_forbidden_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = make.render(tmp_path / "old.wmv", codec="wmv2", container_format="asf")
    kind = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")  # of a stream: video
    path.write_bytes(path.read_bytes().replace(kind, kind[:11] + b"?" + kind[12:], 1))
    with pytest.raises(MediaError, match="not a video that can be read, or damaged"):
        probe(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not a regular file"):
        probe(tmp_path / "pipe.mp4")


@pytest.mark.skipif(os.name == "nt", reason="these names are not allowed there")
@pytest.mark.parametrize(
    "name",
    [
        "with space.mp4",
        "qu'o\"te.mp4",
        "-dash.mp4",
        "http:x.mp4",
        "file:x.mp4",
        "pipe:0",
        "concat:a|b",
        "data:text,x",
        "%03d.mp4",
        "ünï.mp4",
        "no-ending",
        "picture.png",
        "list.m3u8",
    ],
)
def test_a_name_is_only_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make.render(tmp_path / "plain.mp4")
    shutil.copy("plain.mp4", tmp_path / name)
    assert probe(name).codec == "h264"


def test_nothing_is_printed_about_a_damaged_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make.render(tmp_path / "clip.ts", frames=50)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :: 97] = bytes(len(content[len(content) // 2 :: 97]))
    path.write_bytes(content)
    assert "damaged" in decode_video(path).notes[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("https://example.com/a.mp4?x=1", "download or save it to a file first"),
        ("HTTP://example.com/a.mp4", "download or save it to a file first"),
        ("rtsp://camera/1", "download or save it to a file first"),
        ("s3://bucket/a.mp4", "download or save it to a file first"),
        ("youtube.com/watch?v=1", "download or save it to a file first"),
        ("file:///media/my%20clip.mp4", "give the path alone, /media/my clip.mp4, or download the file"),
        ("-", "standard input cannot be used, because a video is read more than once; save it to a file"),
        ("*.mp4", "no file matches this pattern"),
        ("C:/clip.mp4", "no such file"),
    ],
)
def test_a_name_that_is_no_file_is_shown_as_typed_with_what_to_do(
    name: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (probe, decode_video):
        with pytest.raises(MediaError, match=f"^{re.escape(name)}: .*{re.escape(advice)}"):
            read(name)


def test_a_data_url_is_not_shown_whole() -> None:
    with pytest.raises(MediaError, match=r"^data:video/mp4;base64,A{178}…: this is a URL"):
        probe("data:video/mp4;base64," + "A" * 1_000_000)


def test_an_empty_name_is_named() -> None:
    with pytest.raises(MediaError, match="the name of the video is empty"):
        probe("")


def test_a_file_may_have_a_name_like_a_url_or_a_pattern(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("https:/www.mp4", "-", "what?*.mp4"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(clips / "cfr25_1p0s.mp4", name)
        assert probe(name).path == Path(name)


# --- frames that are too large, names that steer terminals, and failures of the system


def bomb_gif(path: Path, width: int, height: int) -> Path:
    """A small animation on a screen of any size."""
    pictures = [Image.fromarray(make.numbered(index, 64, 48)) for index in (1, 2)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=200)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", width, height)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [(16_000, 16_000), (8192, 4353)])
def test_a_screen_that_needs_gigabytes_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = bomb_gif(tmp_path / "bomb.gif", *size)
    with pytest.raises(MediaError, match=rf"frames of {size[0]}x{size[1]} = .* allowed are 35,651,584"):
        probe(path)


def test_frames_of_many_bytes_a_pixel_are_refused(tmp_path: Path) -> None:
    path = make.render(
        tmp_path / "deep.mkv", size=(6144, 4096), codec="ffv1", frames=1, pixel_format="rgba64le"
    )
    with pytest.raises(MediaError, match=r"6144x4096 .*16le take 201 MB each; allowed are 143 MB"):
        probe(path)


def test_frames_that_grow_past_the_limit_are_refused(tmp_path: Path) -> None:
    parts = [
        make.render(
            tmp_path / f"{w}.mjpeg", size=(w, h), codec="mjpeg", frames=count, pixel_format="yuvj420p"
        )
        for w, h, count in ((64, 48, 5), (8192, 4368, 2))
    ]
    path = written(tmp_path / "grows.mjpeg", b"".join(part.read_bytes() for part in parts))
    with pytest.raises(MediaError, match="frames become larger than 35,651,584 pixels"):
        decode_video(path)


def test_one_damaged_size_is_no_growth(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mjpeg", codec="mjpeg", frames=10, pixel_format="yuvj420p")
    content = bytearray(path.read_bytes())
    starts = [found.start() for found in re.finditer(b"\xff\xc0\x00\x11\x08", bytes(content))]
    content[starts[5] + 5 : starts[5] + 9] = b"\xff\xf0\xff\xf0"
    path.write_bytes(content)
    decoded = decode_video(path)
    assert decoded.timeline.damaged and decoded.frame_count == 9


def test_control_characters_of_names_are_escaped_and_letters_kept(tmp_path: Path) -> None:
    name = "\x1b[2J\n\u202e\u2028\x9b\udcff 雨音 ünï 👩\u200d🎤.mkv"
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / name)
    assert r"\x1b[2J\n\u202e\u2028\x9b\udcff 雨音 ünï 👩" + "\u200d🎤.mkv: no such file" in str(caught.value)


def test_a_message_keeps_both_ends_of_what_is_endless() -> None:
    message = str(MediaError(f"{'a' * 5000}: no such file"))
    assert len(message) < 1600 and message.startswith("aaa") and message.endswith("aaa: no such file")


def test_names_of_attachments_are_escaped(tmp_path: Path) -> None:
    path = make.render(tmp_path / "plain.mkv")
    with av.open(path) as source, av.open(tmp_path / "named.mkv", "w") as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        output.add_attachment("\x1b[2J\nforged", "text/plain", b"text")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    assert r"attachment: \x1b[2J\nforged" in probe(tmp_path / "named.mkv").streams


@pytest.mark.skipif(os.name == "nt", reason="has no limit on open files")
def test_too_many_open_files_are_named(tmp_path: Path) -> None:
    path = make.render(tmp_path / "ok.mp4")
    probe(path)  # loads what needs files of its own
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(each.name) for each in Path("/dev/fd").iterdir()) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(3, used), limits[1]))
    try:
        with pytest.raises(MediaError, match="too many open files"):
            probe(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(os.name == "nt", reason="folders of this depth")
def test_a_path_that_is_too_long_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.render(tmp_path / "ok.mp4")
    monkeypatch.chdir(tmp_path)
    for _ in range(21):
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    shutil.copy(path, "c.mp4")
    with pytest.raises(MediaError, match=r"file name too long.*shorter path"):
        probe("c.mp4")


LOW_MEMORY = """
import os, resource, sys
from pathlib import Path
import thinksound.media.decode
from thinksound.encoders.views import METACLIP_VIEW, SYNC_VIEW
from thinksound.errors import ThinkSoundError

for megabytes in map(int, sys.argv[2:]):
    if os.fork() == 0:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20,) * 2)
        try:
            video = thinksound.media.decode.decode_video(sys.argv[1], (METACLIP_VIEW, SYNC_VIEW))
            print(video.frame_count, flush=True)
        except ThinkSoundError as error:
            print(type(error).__name__, str(error).split(": ")[-1], flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's accounts")
@pytest.mark.slow
def test_a_lack_of_memory_is_never_called_damage_and_drops_no_frame(tmp_path: Path) -> None:
    path = make.render(tmp_path / "good.mp4", size=(1280, 720), frames=20)
    command = [sys.executable, "-c", LOW_MEMORY, str(path), *map(str, (8, 24, 40, 64, 1024))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = done.stdout.splitlines()
    short = "PlacementError out of memory; free some, or give a smaller video"
    assert len(said) == 5 and set(said) <= {"20", short} and (said[0], said[-1]) == (short, "20"), done
