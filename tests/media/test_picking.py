"""Frames as the reader of published MMAudio picks them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support import clips as make
from support.paths import PARITY
from support.reference import SMALL_SYNCHFORMER, relative_l2, seeded

from thinksound.encoders.sync import encode_sync
from thinksound.encoders.views import DFN5B_VIEW, MMAUDIO_SYNC_VIEW, sync_feature_count
from thinksound.errors import MediaError
from thinksound.media.decode import DecodedVideo, decode_video
from thinksound.media.views import View
from thinksound.models.synchformer import Synchformer

PUBLISHED = json.loads((PARITY / "mmaudio" / "frames_mmaudio.json").read_text())
UNUSABLE = [name for name, read in PUBLISHED.items() if read["8"]["duration"] < 0.64]
USABLE = [name for name in PUBLISHED if name not in UNUSABLE]
# Those whose frames and times the default reader does not turn, count from another start or repair.
AS_STORED = [name for name in USABLE if not re.search("^(rotated|avi_|start|video_starts|interl)", name)]


def digest(rgb: np.ndarray) -> np.ndarray:
    """A frame's SHA-256, as a picture of 27 of its bytes."""
    content = hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).digest()
    return np.frombuffer(content[:27], np.uint8).reshape(3, 3, 3)


def digest_view(of: View) -> View:
    return View(of.name, of.fps, of.count, digest, 3, of.pick)


VIEWS = [digest_view(DFN5B_VIEW), digest_view(MMAUDIO_SYNC_VIEW)]


def digests(path: Path, convert: Callable[[av.VideoFrame], np.ndarray]) -> list[str]:
    """The SHA-256 of all frames of a video in the order of decoding, 16 digits of each."""
    with av.open(str(path)) as container:
        return [digest(convert(frame)).tobytes().hex()[:16] for frame in container.decode(video=0)]


def picked(video: DecodedVideo, name: str) -> list[str]:
    return [bytes(frame.flatten().tolist()).hex()[:16] for frame in video.frames[name]]


def plain(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize("duration", ["8", "2.5"])
@pytest.mark.parametrize("name", USABLE)
def test_drifting_ticks_pick_the_published_frames(clips: Path, name: str, duration: str) -> None:
    published = PUBLISHED[name][duration]
    video = decode_video(clips / name, VIEWS, float(duration), drifting=True)
    known = digests(clips / name, plain)
    assert len(known) == published["decoded"]
    assert video.features_duration_s == published["duration"]
    for view in ("clip", "sync"):
        assert picked(video, view) == [known[index] for index in published[view]]
    sums = published["rgb24_sha256_16"]
    clip, sync = picked(video, "clip"), picked(video, "sync")
    assert (clip[0], clip[-1], sync[-1]) == (sums["clip_first"], sums["clip_last"], sums["sync_last"])
    _, frames, features = published["lengths_44k"]
    assert (len(clip), sync_feature_count(video.features_duration_s)) == (frames, features)


@pytest.mark.parametrize("name", sorted(set(UNUSABLE) - {"one_frame_25.mp4"}))
def test_a_video_too_short_for_drifting_ticks_is_refused(clips: Path, name: str) -> None:
    with pytest.raises(MediaError, match=r"frames for 0\.\d+ s of this video; at least 0\.64 s are needed"):
        decode_video(clips / name, VIEWS, 8.0, drifting=True)
    assert decode_video(clips / name, VIEWS, 8.0).features_duration_s < 0.64


def test_the_timeline_is_that_of_the_picture_all_the_same(clips: Path) -> None:
    usual, drifting = (decode_video(clips / "vfr_mp4.mp4", VIEWS, 2.5, None, each) for each in (False, True))
    assert usual.timeline == drifting.timeline and usual.duration_s == drifting.duration_s == 2.5
    assert usual.features_duration_s == 2.5 and drifting.features_duration_s <= 2.5


def test_a_last_frame_that_stays_leaves_a_silence_of_which_a_note_warns(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mp4", times=[n / 25 for n in range(26)], stay_s=3.0)
    exact, drifting = (decode_video(path, VIEWS, None, None, each) for each in (False, True))
    assert exact.duration_s == drifting.duration_s == 4.0 and not exact.notes
    assert exact.features_duration_s == 4.0 and drifting.features_duration_s <= 1.0
    (note,) = drifting.notes
    assert re.search(r"frames for the first (0\.9\d|1\.0\d) s of 4\.00 s; the sound is silent after", note)
    short = make.render(tmp_path / "short.mp4", times=[n / 25 for n in range(26)], stay_s=0.4)
    assert not decode_video(short, VIEWS, drifting=True).notes  # the loss that any video has


def test_without_a_duration_the_whole_video_is_read(clips: Path) -> None:
    for name in ("cfr25_1p0s.mp4", "vfr_mkv.mkv"):
        whole, asked = (decode_video(clips / name, VIEWS, each, drifting=True) for each in (None, 8.0))
        assert picked(whole, "sync") == picked(asked, "sync")
        assert whole.features_duration_s == asked.features_duration_s


@pytest.mark.parametrize("name", AS_STORED)
def test_exact_ticks_differ_from_drifting_ones_where_the_drift_alone_tells(clips: Path, name: str) -> None:
    exact, drifting = (decode_video(clips / name, VIEWS, 8.0, None, each) for each in (False, True))
    for view in ("clip", "sync"):
        pairs = list(
            zip(picked(exact, view), picked(drifting, view), strict=False)
        )  # the drifting list ends earlier
        differ = [place for place, (ours, theirs) in enumerate(pairs) if ours != theirs]
        known = PUBLISHED[name]["8"].get(f"exact_arithmetic_differs_{view}", [])
        assert differ == [place for place in known if place < len(pairs)]


def read_whole(path: Path, until_s: float) -> tuple[float, list[str]]:
    """The published reader, written out: the duration that is left, and what Synchformer sees."""
    frames = digests(path, plain)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [make.seconds(frame.pts, stream.time_base) for frame in container.decode(stream)]
    lists: dict[int, list[str]] = {}
    for fps in (8, 25):
        tick_s, lists[fps] = 0.0, []
        for frame, time_s in zip(frames, times, strict=True):
            while tick_s <= time_s <= until_s:
                lists[fps].append(frame)
                tick_s += 1 / fps
    duration_s = min(until_s, *(len(each) / fps for fps, each in lists.items()))
    return duration_s, lists[25][: int(25 * duration_s)]


@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv"])
def test_a_cut_picks_what_reading_the_whole_file_picks(tmp_path: Path, name: str) -> None:
    """The times of an AVI with B-frames do not rise: some come after others that are past the cut."""
    path = make.render(tmp_path / name, frames=60, options={"bf": "8", "b_strategy": "0"})
    for until_s in (0.82, 1.0, 1.18, 1.46):
        video = decode_video(path, VIEWS, until_s, drifting=True)
        assert (video.features_duration_s, picked(video, "sync")) == read_whole(path, until_s)


def test_what_comes_long_after_the_end_is_not_decoded(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mp4", frames=300, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert decode_video(path, VIEWS).timeline.damaged
    video = decode_video(path, VIEWS, 2.5, drifting=True)
    assert (
        not video.timeline.damaged and video.features_duration_s == 2.48
    )  # the list was waiting for one more frame


# Differing frames of those compared, and how far apart the features are: docs/measurements.md.
DRIFT = {
    "cfr25_10p04s.mp4": (183, 200, 0.48),
    "cfr24_9p0s.mp4": (7, 200, 0.039),
    "cfr2997_9p0s.mp4": (0, 200, 0.0),
    "cfr30_3p2s.mp4": (12, 80, 0.087),
    "cfr50_3p2s.mp4": (63, 80, 0.16),
    "vfr_mp4.mp4": (0, 130, 0.0),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", DRIFT)
def test_what_the_drift_does_to_features(clips: Path, name: str) -> None:
    network = seeded(Synchformer(SMALL_SYNCHFORMER), "")
    views = [DFN5B_VIEW, MMAUDIO_SYNC_VIEW]
    exact, drifting = (decode_video(clips / name, views, 8.0, None, each).frames for each in (False, True))
    count = len(drifting["sync"])
    differ = sum(not torch.equal(*pair) for pair in zip(exact["sync"][:count], drifting["sync"], strict=True))
    features = encode_sync(network.vfeat_extractor, drifting["sync"])
    error = relative_l2(encode_sync(network.vfeat_extractor, exact["sync"])[: len(features)], features)
    print(f"DRIFT {name}: {differ} of {count} frames, features {error:.2g}")
    assert (differ, count) == DRIFT[name][:2] and error == pytest.approx(DRIFT[name][2], rel=0.05)
    assert torch.equal(exact["clip"][: len(drifting["clip"])], drifting["clip"])
