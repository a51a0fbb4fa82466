"""Quiet videos: nothing in them moves, or only what makes no sound; shares and levels are right."""

from __future__ import annotations

import pytest
import torch

from thinksound.evaluation.made.quiet import QUIET_KINDS, QuietScores, quiet_clip, summarise_quiet
from thinksound.families.find import family_of
from thinksound.presets import TINY
from thinksound.synthetic.make import CLIP_S

pytestmark = pytest.mark.slow

VIEWS = family_of(TINY).views


@pytest.fixture(scope="module")
def clips():
    """Each kind, first with texts and then without."""
    return [quiet_clip(index, VIEWS) for index in range(2 * len(QUIET_KINDS))]


def test_every_kind_comes_with_and_without_texts(clips):
    assert [clip.kind for clip in clips] == [*QUIET_KINDS, *QUIET_KINDS]
    assert len({clip.seed for clip in clips}) == len(clips)
    for clip in clips[: len(QUIET_KINDS)]:
        assert clip.texts.caption and clip.texts.cot
    for clip in clips[len(QUIET_KINDS) :]:
        assert not clip.texts.caption and not clip.texts.cot


def test_every_view_is_filled_as_decoding_fills_it(clips):
    for clip in clips:
        for view in VIEWS:
            assert view.takes(clip.frames[view.name])
            assert len(clip.frames[view.name]) == view.count(CLIP_S)


def test_equal_numbers_give_equal_clips(clips):
    again = quiet_clip(4, VIEWS)
    assert again.texts == clips[4].texts
    assert all(torch.equal(again.frames[view.name], clips[4].frames[view.name]) for view in VIEWS)


def moves(frames):
    """The share of the pixels that change from frame to frame, and by how much at most."""
    change = (frames[1:].int() - frames[:-1].int()).abs()
    return float((change > 0).float().mean()), int(change.max())


def test_only_silent_motion_and_the_camera_move(clips):
    for clip in clips:
        share, most = moves(clip.frames["sync"])
        if clip.kind in ("still picture", "black", "plain colour"):
            assert (share, most) == (0, 0)
        elif clip.kind == "silent motion":
            assert 0 < share < 0.2 and most > 20
        else:
            assert share > 0.05


def test_black_is_black_and_a_plain_colour_has_one(clips):
    by_kind = {clip.kind: clip.frames["sync"] for clip in clips}
    assert by_kind["black"].max() == 0
    assert len(by_kind["plain colour"].reshape(-1, 3).unique(dim=0)) == 1
    assert by_kind["plain colour"].max() > 0
    assert len(by_kind["still picture"].reshape(-1, 3).unique(dim=0)) > 10


def test_a_clip_is_quiet_up_to_the_limit_and_the_loudest_counts():
    def clip(kind, has_texts, loudest_db, peak_db):
        return QuietScores(kind, 0, has_texts, loudest_db, peak_db)

    result = summarise_quiet(
        [
            clip("black", True, -40.0, -20.0),
            clip("black", False, -39.9, -30.0),
            clip("still picture", True, -60.0, -10.0),
        ]
    )
    assert list(result) == ["all", "still picture", "black", "with texts", "without texts"]
    assert result["all"] == {
        "clips": 3,
        "quiet": pytest.approx(2 / 3),
        "loudest_db": -39.9,
        "peak_db": -10.0,
    }
    assert result["black"] == {"clips": 2, "quiet": 0.5, "loudest_db": -39.9, "peak_db": -20.0}
    assert result["with texts"]["quiet"] == 1
    assert result["without texts"]["quiet"] == 0
