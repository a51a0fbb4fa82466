"""One damaged film through probe, decode and mux, and an independent look at what came out."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import torch
from support.decoded import decode_video

from fuzzing import WrongResult
from thinksound.cli import main
from thinksound.errors import MediaError
from thinksound.media.decode import DecodedVideo
from thinksound.media.mux import mux
from thinksound.media.soundtrack import read_sound
from thinksound.rates import audio_sample_count

_RATE = 44_100  # Hz
_APART_S = 0.05  # how much sound and picture may differ
_AAC_S = 1024 / _RATE  # the last packet of the sound is filled up
_FFPROBE = shutil.which("ffprobe")


def run_film(film: Path, folder: Path, case: dict[str, Any]) -> str:
    """Decode the film, mux a tone under it, and check the result."""
    with contextlib.suppress(MediaError):  # it need not have sound
        sound = read_sound(film, _RATE, 10)
        if not sound.waveform.isfinite().all():
            raise WrongResult("the sound that was read holds values that are not numbers")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main(["info", str(film)])
    if any(ord(letter) < 32 and letter != "\n" for letter in printed.getvalue()):
        raise WrongResult(f"info prints control characters: {printed.getvalue()!r}")
    decoded = decode_video(film)
    if status:
        raise WrongResult(f"info refuses a film that decodes: {printed.getvalue()}")
    long = [note for note in decoded.notes if len(note) > 1000]
    if long:
        raise WrongResult(f"a note of {len(long[0])} characters: {long[0][:300]}")
    samples = audio_sample_count(decoded.duration_s, _RATE)
    pcm16 = (torch.sin(torch.arange(samples) * 0.06) * 8000).to(torch.int16).expand(2, -1)
    output = folder / "out.mp4"
    result = mux(decoded, pcm16, _RATE, output, {"seed": "1", "caption": "a tone"})
    _check(film, decoded, output, result.copied)
    return f"{'copied' if result.copied else 'encoded'}, {decoded.frame_count} frames"


def _check(film: Path, decoded: DecodedVideo, output: Path, copied: bool) -> None:
    with av.open(output) as container:
        assert len(container.streams.video) == len(container.streams.audio) == 1
        # Of the track: for some codecs FFmpeg tells another duration of the last packet than is stored.
        (video,) = container.streams.video
        length = float((video.duration or 0) * (video.time_base or 0))
        spans: dict[str, list[tuple[float, float]]] = {"video": [], "audio": []}
        for packet in container.demux():
            kind = packet.stream.type
            if packet.size and packet.pts is not None and not packet.is_discard and kind in spans:
                end = packet.pts + (packet.duration or 0)
                spans[kind].append((float(packet.pts * packet.time_base), float(end * packet.time_base)))
    shown, heard = sorted(spans["video"]), sorted(spans["audio"])
    if len(shown) != decoded.frame_count:
        raise WrongResult(f"{len(shown)} frames in the output, {decoded.frame_count} were decoded")
    if any(first >= second for (first, _), (second, _) in pairwise(shown)):
        raise WrongResult("two frames of the output have one time")
    _near("the picture's begin and 0", shown[0][0], 0.0)
    _near("the length of the picture's track and the film's", length, decoded.duration_s)
    until = max(end for _, end in heard)
    if not decoded.duration_s - _APART_S <= until <= decoded.duration_s + _APART_S + _AAC_S:
        raise WrongResult(f"the sound ends at {until:.3f} s, the picture lasts {decoded.duration_s:.3f} s")
    if copied:
        _check_copied(film, output)
    with av.open(output) as container:
        count = sum(1 for _ in container.decode(video=0))
    if count != decoded.frame_count and not decoded.timeline.damaged:
        raise WrongResult(f"{count} frames decode from the output, {decoded.frame_count} from the input")
    if _FFPROBE:
        _probe(output, decoded.duration_s)


def _check_copied(film: Path, output: Path) -> None:
    """The packets of the output are among the film's, in the same order."""
    ((copied, _),) = _packets(output)
    for packets, annex_b in _packets(film):
        # Start codes become lengths; zeros behind a unit belong to neither.
        there = iter([_units(each) for each in packets] if annex_b else packets)
        wanted = [_behind_lengths(each) for each in copied] if annex_b else copied
        if all(packet in there for packet in wanted):
            return
    raise WrongResult("the copied packets are not those of the film")


def _packets(path: Path) -> list[tuple[list[bytes], bool]]:
    """The packets of each picture stream, and whether they hold NAL units behind start codes."""
    with av.open(path, metadata_errors="replace") as container:
        found: dict[int, list[bytes]] = {stream.index: [] for stream in container.streams.video}
        contexts = [stream.codec_context for stream in container.streams.video]
        annex_b = [
            context is not None
            and context.name in ("h264", "hevc")
            and (context.extradata or b"")[:1] != b"\1"
            for context in contexts
        ]
        with contextlib.suppress(av.error.FFmpegError):
            for packet in container.demux(video=tuple(range(len(found)))):
                if packet.size:
                    found[packet.stream.index].append(bytes(packet))
    return list(zip(found.values(), annex_b, strict=True))


def _units(packet: bytes) -> list[bytes]:
    return [unit.rstrip(b"\0") for unit in packet.split(b"\0\0\1")[1:]]


def _behind_lengths(packet: bytes) -> list[bytes]:
    units, place = [], 0
    while place < len(packet):
        end = place + 4 + int.from_bytes(packet[place : place + 4], "big")
        units.append(packet[place + 4 : end].rstrip(b"\0"))
        place = end
    return units


def _probe(output: Path, duration_s: float) -> None:
    command = [
        str(_FFPROBE),
        "-v",
        "error",
        "-of",
        "json",
        "-show_entries",
        "stream=codec_type,start_time,duration",
    ]
    done = subprocess.run([*command, str(output)], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise WrongResult("ffprobe cannot read the output")
    for stream in json.loads(done.stdout)["streams"]:
        if stream["codec_type"] in ("video", "audio"):
            what = f"{stream['codec_type']} by ffprobe"
            _near(f"the start of {what} and 0", float(stream["start_time"]), 0.0)
            _near(f"the duration of {what} and the film's", float(stream["duration"]), duration_s)


def _near(what: str, one: float, other: float) -> None:
    if abs(one - other) > _APART_S:
        raise WrongResult(f"{what}: {one:.3f} s and {other:.3f} s")
