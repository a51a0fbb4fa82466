"""Which frames the rule "next" picks; "nearest" is held to the published extractor in test_decode."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support import clips as make

from thinksound.media.decode import DecodedVideo, decode_video
from thinksound.media.views import View

SQUARE = (64, 64)
B_FRAMES = {"preset": "medium", "bf": "3", "b_strategy": "0"}
NEXT = View("next", 25, lambda duration_s: max(16, int(25 * duration_s)), lambda rgb: rgb, 64, "next")
PAUSE = [n / 30 for n in range(12)] + [1.5 + n / 30 for n in range(12)]


def numbers(video: DecodedVideo) -> list[int]:
    return [make.number_of(frame) for frame in video.frames["next"].numpy()]


def expected(times: list[Fraction], count: int, end: Fraction | None = None) -> list[int]:
    """The rule, written out: the first frame at the tick or after it, else the last before the end."""
    seen = [index for index, time in enumerate(times) if end is None or time - times[0] <= end]
    return [
        next((index for index in seen if times[index] - times[0] >= Fraction(tick, 25)), seen[-1])
        for tick in range(count)
    ]


@pytest.mark.parametrize("times", [[n / 30 for n in range(40)], [n / 10 for n in range(20)], PAUSE])
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_each_tick_shows_the_first_frame_at_its_time_or_after(
    tmp_path: Path, container: str, times: list[float]
) -> None:
    path = make.render(tmp_path / f"clip.{container}", times=times, size=SQUARE, options=B_FRAMES)
    video = decode_video(path, [NEXT])
    picked = numbers(video)
    assert len(picked) == NEXT.count(video.duration_s)
    assert picked == expected(list(video.timeline.times), len(picked))
    if container == "ts":
        assert video.start_s > 0  # the ticks count from the first frame, as the sound does


def test_ticks_are_exact(tmp_path: Path) -> None:
    video = decode_video(make.render(tmp_path / "clip.mkv", codec="ffv1", frames=250, size=SQUARE), [NEXT])
    assert numbers(video) == list(range(250))


@pytest.mark.parametrize("cut_s", [0.5, 1.0, 1.5])
def test_nothing_after_the_cut_is_seen(tmp_path: Path, cut_s: float) -> None:
    path = make.render(tmp_path / "clip.mkv", times=PAUSE, size=SQUARE, options=B_FRAMES)
    whole, video = decode_video(path, [NEXT]), decode_video(path, [NEXT], cut_s)
    picked = numbers(video)
    assert picked == expected(list(whole.timeline.times), len(picked), Fraction(cut_s))
    assert picked[-1] == (12 if cut_s == 1.5 else 11)  # a frame at the very end of the cut counts


def test_frames_beside_ticks_that_are_shown_last_are_the_last(tmp_path: Path) -> None:
    path = make.render(tmp_path / "a.mkv", times=[0, 0.01, 0.02], stay_s=1.0, size=SQUARE)
    assert numbers(decode_video(path, [NEXT])) == [0] + [2] * 24


def test_several_views_share_one_pass_and_one_conversion(tmp_path: Path) -> None:
    path = make.render(tmp_path / "clip.mkv", frames=25, size=SQUARE)
    seen: list[np.ndarray] = []

    def remembered(rgb: np.ndarray) -> np.ndarray:
        seen.append(rgb)
        return rgb[:32, :32]

    views = [
        View("slow", 1, lambda duration_s: 1, remembered, 32, "next"),
        View("fast", 2, lambda duration_s: 2, remembered, 32, "next"),
    ]
    frames = decode_video(path, views).frames
    assert {name: tuple(each.shape) for name, each in frames.items()} == {
        "slow": (1, 32, 32, 3),
        "fast": (2, 32, 32, 3),
    }
    assert len(seen) == 3 and seen[0] is seen[1] and seen[2] is not seen[0]
