"""What an MP4 keeps of its input besides the frames, and the notes about the rest."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import pytest
import torch
from av.subtitles.stream import SubtitleStream
from support import clips as make
from support.decoded import decode_video

from thinksound.media.mux import MuxResult, mux
from thinksound.rates import audio_sample_count

MILLISECOND = Fraction(1, 1000)
X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}
HEADER = (
    b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\n"
    b"Style: Default,Arial,16\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, "
    b"Effect, Text\n"
)


def with_sound(path: Path, output: Path, duration_s: float | None = None, **own: str) -> MuxResult:
    video = decode_video(path, duration_s)
    sound = torch.zeros(2, audio_sample_count(video.duration_s, 44_100), dtype=torch.int16)
    return mux(video, sound, 44_100, output, own)


def film(
    path: Path,
    tags: dict[str, str] | None = None,
    chapters: list[tuple[int, int, str]] | None = None,
    subtitles: tuple[str, list[tuple[int, int, bytes]]] | None = None,
    shift_ms: int = 0,
    language: str = "",
) -> Path:
    """One second of frames with what is given beside them; all times in ms, ``shift_ms`` later."""
    source = make.render(path.with_name("source.mkv"))
    options = {"movflags": "use_metadata_tags"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(source) as frames, av.open(path, "w", container_options=options) as output:
        copy = output.add_stream_from_template(frames.streams.video[0])
        if language:
            copy.metadata.update(language=language)
        output.metadata.update(tags or {})
        output.set_chapters(
            [
                {
                    "id": index,
                    "start": start + shift_ms,
                    "end": end + shift_ms,
                    "time_base": MILLISECOND,
                    "metadata": {"title": title},
                }
                for index, (start, end, title) in enumerate(chapters or [])
            ]
        )
        if subtitles:
            track = cast(SubtitleStream, output.add_stream(subtitles[0]))
            track.codec_context.subtitle_header = HEADER
            track.codec_context.time_base = track.time_base = MILLISECOND
            track.metadata.update(language="deu")
        texts = []
        for start, end, text in subtitles[1] if subtitles else []:
            event = av.subtitles.subtitle.SubtitleSet.create(text, 0, end - start, start)
            packet = track.codec_context.encode_subtitle(event)
            packet.time_base, packet.duration, packet.stream = MILLISECOND, end - start, track
            packet.pts = packet.dts = start + shift_ms
            texts.append(packet)
        for packet in frames.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts + shift_ms, packet.dts + shift_ms
                packet.stream = copy
                texts.append(packet)
        for packet in sorted(texts, key=lambda packet: make.seconds(packet.dts, packet.time_base)):
            output.mux(packet)
    return path


def cues(path: Path) -> list[tuple[float, float, bytes]]:
    with av.open(path) as container:
        stream = container.streams.subtitles[0]
        assert (stream.name, stream.language) == ("mov_text", "deu")
        found = [
            (packet.pts or 0, packet.duration or 0, bytes(packet))
            for packet in container.demux(stream)
            if packet.size > 2
        ]
        unit = stream.time_base
    return [
        (
            make.seconds(start, unit),
            make.seconds(start + stays, unit),
            content[2 : 2 + int.from_bytes(content[:2])],
        )
        for start, stays, content in found
    ]


@pytest.mark.parametrize("name", ["film.mov", "film.mkv"])
def test_tags_are_kept_and_our_own_win(tmp_path: Path, name: str) -> None:
    tags = {
        "title": "My film",
        "comment": "take 3",
        "creation_time": "2024-05-06T07:08:09Z",
        "location": "+48.1372+011.5756/",
        "prompt": '{"3": {"inputs": {"text": "ünï"}}}',
        "Seed": "of another generator",
    }
    result = with_sound(film(tmp_path / name, tags, language="ita"), tmp_path / "out.mp4", seed="7")
    assert result.notes == ()
    with av.open(tmp_path / "out.mp4") as container:
        found = container.metadata
        assert {key: found[key] for key in ("title", "comment", "location", "prompt", "seed")} == {
            **{key: tags[key] for key in ("title", "comment", "location", "prompt")},
            "seed": "7",
        }
        assert found["creation_time"].startswith("2024-05-06T07:08:09")
        assert container.streams.video[0].language == "ita"
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def boxes(content: bytes, *path: bytes) -> bytes:
    """The content of a box in a box in ... an MP4."""
    for kind in path:
        at = 4 * (content[:4] == bytes(4))  # version and flags
        while content[at + 4 : at + 8] != kind:
            at += struct.unpack_from(">I", content, at)[0]
        content = content[at + 8 : at + struct.unpack_from(">I", content, at)[0]]
    return content


def test_tags_are_where_players_look_for_them(tmp_path: Path) -> None:
    tags = {"title": "My film", "location": "+48.1372+011.5756/", "prompt": "{}"}
    path = film(tmp_path / "film.mkv", tags, chapters=[(0, 1000, "one")])
    with_sound(path, tmp_path / "out.mp4", seed="7")
    content = (tmp_path / "out.mp4").read_bytes()
    udta = (b"moov", b"udta")
    assert boxes(content, *udta, b"meta", b"ilst", b"\xa9nam", b"data")[8:] == b"My film"
    assert boxes(content, *udta, b"\xa9xyz")[4:] == b"+48.1372+011.5756/"
    assert boxes(content, *udta, b"chpl") and b"mdtaprompt" in boxes(content, b"moov", b"meta", b"keys")
    assert b"thinksound.room" not in content
    plain = with_sound(film(tmp_path / "plain.mkv"), tmp_path / "plain.mp4", seed="7")
    assert plain.copied and b"free" not in boxes((tmp_path / "plain.mp4").read_bytes(), b"moov")


def test_hostile_tags_do_no_harm(tmp_path: Path) -> None:
    tags = {
        "title": "a\x1b[2Jb\nc",
        "comment": "x" * 3_000_000,
        "timecode": "01:02:03:04",
        "a\x07b": "bell",
    }
    result = with_sound(film(tmp_path / "film.mkv", tags), tmp_path / "out.mp4")
    assert result.notes == ("left out: 1 tag (too long or not usable)",)
    with av.open(tmp_path / "out.mp4") as container:
        assert container.metadata["title"] == "a [2Jb\nc"
        assert container.metadata["ab"] == "bell"
        assert not {"comment", "timecode"} & set(container.metadata)
        assert [stream.type for stream in container.streams] == ["video", "audio"]


@pytest.mark.parametrize("shift_ms", [0, 2000])
def test_chapters_move_with_the_first_frame_and_end_with_the_last(tmp_path: Path, shift_ms: int) -> None:
    chapters = [(0, 500, "one"), (500, 900, "two"), (900, 1000, "three")]
    path = film(tmp_path / "film.mkv", chapters=chapters, shift_ms=shift_ms)
    assert with_sound(path, tmp_path / "out.mp4", 0.8).copied
    with av.open(tmp_path / "out.mp4") as container:
        found = [
            (
                each["metadata"]["title"],
                *(make.seconds(each[key], each["time_base"]) for key in ("start", "end")),
            )
            for each in container.chapters()
        ]
        assert make.seconds(container.duration, Fraction(1, av.time_base)) == pytest.approx(0.8, abs=2e-5)
    assert found == [("one", 0, 0.5), ("two", 0.5, pytest.approx(0.8, abs=0.001))]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "srt"), ("a.mkv", "ass"), ("a.webm.mkv", "webvtt"), ("a.mp4", "mov_text")]
)
def test_text_subtitles_are_kept(tmp_path: Path, name: str, codec: str) -> None:
    lines = [
        (100, 400, b"0,0,Default,,0,0,0,,Hello, {\\i1}you{\\i0}"),
        (500, 2500, b"1,0,Default,,0,0,0,,to the end"),
    ]
    path = film(tmp_path / name, subtitles=(codec, lines))
    result = with_sound(path, tmp_path / "out.mp4")
    assert result.copied and result.notes == ()
    assert cues(tmp_path / "out.mp4") == [
        (pytest.approx(0.1), pytest.approx(0.4), b"Hello, you"),
        (pytest.approx(0.5), pytest.approx(1.0), b"to the end"),
    ]


def test_subtitles_shown_together_become_one(tmp_path: Path) -> None:
    lines = [(0, 600, b"0,0,Default,,0,0,0,,below"), (200, 400, b"1,0,Default,,0,0,0,,above")]
    with_sound(film(tmp_path / "a.mkv", subtitles=("ass", lines), shift_ms=1000), tmp_path / "out.mp4")
    assert [(round(start, 3), round(end, 3), text) for start, end, text in cues(tmp_path / "out.mp4")] == [
        (0, 0.2, b"below"),
        (0.2, 0.4, b"below\nabove"),
        (0.4, 0.6, b"below"),
    ]


def boxed(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def with_dolby_vision(path: Path, profile: int, compatibility: int) -> Path:
    """Put a Dolby Vision record into the sample entry of an MP4 whose index comes last."""
    content = bytearray(path.read_bytes())
    record = bytes([1, 0, profile << 1, 1 << 3 | 0b101, compatibility << 4]) + bytes(19)
    new = boxed(b"dvcC" if profile < 8 else b"dvvC", record)
    entry = content.index(b"hvc1", content.index(b"stsd")) - 4
    end = entry + struct.unpack_from(">I", content, entry)[0]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hvc1"):
        at = content.index(kind, content.index(b"moov")) - 4
        struct.pack_into(">I", content, at, struct.unpack_from(">I", content, at)[0] + len(new))
    content[end:end] = new
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("profile", "compatibility", "entry"), [(8, 1, b"hvc1"), (8, 4, b"hvc1"), (5, 0, b"dvh1")]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_dolby_vision_records_stay_with_copied_frames(
    tmp_path: Path, profile: int, compatibility: int, entry: bytes, suffix: str
) -> None:
    path = make.render(tmp_path / "a.mp4", codec="libx265", options=X265, codec_tag="hvc1")
    path = with_dolby_vision(path, profile, compatibility)
    if suffix == ".mkv":
        path = make.remux(path, tmp_path / "a.mkv", container_options={"strict": "unofficial"})
    assert with_sound(path, tmp_path / "out.mp4").copied
    content = (tmp_path / "out.mp4").read_bytes()
    record = content[content.index(b"dvcC" if profile < 8 else b"dvvC") + 4 :]
    assert (record[2] >> 1, record[4] >> 4) == (profile, compatibility)
    assert content[content.index(b"stsd") + 16 :][:4] == entry
    assert b"dby1" in content[:40]


def test_dolby_vision_and_hdr_that_are_lost_are_named(tmp_path: Path) -> None:
    options = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=4:b-adapt=0:transfer=smpte2084"}
    path = make.render(tmp_path / "a.mp4", codec="libx265", options=options, codec_tag="hvc1")
    with_dolby_vision(path, 8, 1)
    result = with_sound(path, tmp_path / "out.mp4", 0.1)  # between frames that depend on each other
    assert not result.copied
    assert result.notes == ("HDR frames were reduced to 8 bits", "left out: Dolby Vision metadata")


def test_what_is_replaced_and_left_out_is_named(tmp_path: Path) -> None:
    sounding = make.render(tmp_path / "sound.mp4", sound_s=1.0)
    with av.open(sounding) as source, av.open(tmp_path / "a.mkv", "w") as output:
        copies = [output.add_stream_from_template(stream, opaque=True) for stream in source.streams]
        output.add_attachment("f.ttf", "font/ttf", b"font")
        output.add_mux_stream("dvd_subtitle")
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    assert with_sound(tmp_path / "a.mkv", tmp_path / "out.mp4").notes == (
        "the sound that the video had (aac, 44100 Hz, stereo) is replaced",
        "left out: 1 subtitle track (dvd_subtitle), 1 attachment",
    )


def test_the_chosen_track_is_the_one_that_is_written(tmp_path: Path) -> None:
    sources = [make.render(tmp_path / f"{width}.mkv", size=(width, 48)) for width in (64, 128)]
    with av.open(tmp_path / "two.mkv", "w") as output, av.open(sources[0]) as a, av.open(sources[1]) as b:
        copies = [output.add_stream_from_template(each.streams.video[0]) for each in (a, b)]
        copies[0].disposition, copies[1].disposition = av.stream.Disposition(0), av.stream.Disposition.default
        packets = [
            (packet.dts, index, packet)
            for index, each in enumerate((a, b))
            for packet in each.demux(video=0)
            if packet.dts is not None
        ]
        wanted = [bytes(packet) for _, index, packet in packets if index == 1]
        for _, index, packet in sorted(packets, key=lambda entry: entry[:2]):
            packet.stream = copies[index]
            output.mux(packet)
    result = with_sound(tmp_path / "two.mkv", tmp_path / "out.mp4")
    assert result.copied and result.notes == ("left out: 1 video track",)
    with av.open(tmp_path / "out.mp4") as container:
        assert [bytes(packet) for packet in container.demux(video=0) if packet.size] == wanted
