"""The motion tower of the tiny preset: what its first layer sees, and where in time its features lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thinksound.models.motion import MotionConfig, MotionTower

SMALL = MotionConfig(embed_dim=16, channels=(4, 8), depth=1, image_size=16, pool=4)


def test_the_first_layer_sees_a_frame_the_one_before_and_four_times_their_difference() -> None:
    tower = MotionTower(SMALL)
    seen: list[Tensor] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    tower.stages[0].register_forward_pre_hook(record)
    frames = torch.randn(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tower.follow(frames)
    before, now, difference = seen[0].unflatten(0, (1, 3)).split(3, dim=2)
    assert torch.equal(now, frames)
    assert torch.equal(before[:, 1:], frames[:, :-1])
    assert torch.equal(before[:, 0], frames[:, 0])  # nothing moves before the first frame
    torch.testing.assert_close(difference, 4 * (now - before))


def test_a_changed_frame_changes_the_features_around_it_alone() -> None:
    tower = MotionTower(SMALL)
    still = torch.zeros(1, 20, 3, 16, 16)
    moved = still.clone()
    moved[:, 10, :, 4:8] = 1.0
    with torch.no_grad():
        changed = (tower(moved) - tower(still)).abs().amax(dim=(0, 2)) > 1e-6  # (P,)
    # The frame itself and the next, whose frame before it is, each seen by a kernel of five frames.
    assert changed.nonzero().flatten().tolist() == list(range(8, 14))


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (4, [0.0, 1.0, 2.0, 3.0]),
        (8, [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]),  # quarters between two centres
        (2, [0.5, 2.5]),
    ],
)
def test_features_are_spread_over_equal_parts_of_the_clip(count: int, wanted: list[float]) -> None:
    """Feature i of N lies at the centre of the i-th of N equal parts, between its neighbours linearly."""
    ramp = torch.arange(4.0)[None, :, None].expand(1, 4, 2)
    assert MotionTower.spread(ramp, count)[0].tolist() == [[value, value] for value in wanted]
