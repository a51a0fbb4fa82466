"""Golden numbers of every stage of the bundled tiny model for one synthetic clip.

All other tests of the model would pass with slightly wrong weights or preprocessing. If the weights were
trained again on purpose, a failure shows the new numbers.
"""

from __future__ import annotations

import pytest
import torch
from parity.procedural import draw
from support import clips as make
from torch import Tensor

import thinksound
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.picture import render_frames
from thinksound.synthetic.texts import describe

pytestmark = pytest.mark.slow

# The RMS of each stage's result, and four projections of it: its scalar products with seeded normal
# directions, divided by its norm. A relative error e in a result moves each of them by about e.
GOLDEN = {
    "clip_features": (0.696693, -1.231154, 0.753357, 0.182925, -1.405154),
    "sync_features": (1.061106, -1.227336, -0.890931, 0.106151, -0.539599),
    "text_features": (1.011882, -0.609781, 0.231621, -0.348374, 0.977497),
    "t5_features": (1.205999, -0.570360, 0.617690, -0.086516, 1.824377),
    "latents": (1.291573, -1.085080, 0.055189, 0.003645, 0.879650),
    "waveform": (0.034524, 0.999762, 0.401788, -0.453918, 0.002748),
}

# Between AVX-512, AVX2 and SSE kernels, with and without oneDNN, with one thread and two, the numbers
# differ by up to 2e-6; those of the waveform by up to 6e-5, because its phases are found iteratively.
TOLERANCE = dict.fromkeys(GOLDEN, 5e-5) | {"waveform": 2e-3}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All stages for two seconds of a bouncing ball, read from a lossless file."""
    scene = make_scene("standard", 3, 2.0)
    frames = render_frames(scene)
    video = make.render(
        tmp_path_factory.mktemp("golden") / "ball.mkv",
        frames=len(frames),
        rate=scene.fps,
        size=(scene.width, scene.height),
        codec="ffv1",  # the same frames whichever encoder and processor wrote them
        pixel_format="bgr0",
        draw=lambda index, width, height: frames[index],
    )
    options = thinksound.Options(num_inference_steps=8, seed=0)
    result = thinksound.load("tiny", device="cpu")(video, *describe(scene), options)
    features = {name: result.features[name] for name in GOLDEN if name.endswith("features")}
    return features | {"latents": result.latents, "waveform": result.waveform}


def numbers(name: str, values: Tensor) -> tuple[float, ...]:
    """The RMS of a stage's result, and its projections."""
    directions = torch.from_numpy(draw(f"golden {name}", (4, *values.shape))).double()
    norm = values.double().norm()
    return (norm / values.numel() ** 0.5).item(), *((directions * values).flatten(1).sum(1) / norm).tolist()


@pytest.mark.parametrize("name", GOLDEN)
def test_every_stage_gives_what_it_gave(results: dict[str, Tensor], name: str) -> None:
    found = numbers(name, results[name])
    wanted = GOLDEN[name]
    assert found == pytest.approx(wanted, abs=TOLERANCE[name]), [round(value, 6) for value in found]


def test_the_numbers_notice_an_error_that_is_small(results: dict[str, Tensor]) -> None:
    """Relative noise of 0.001 in the latents, and features shifted by one, exceed the tolerance by far."""
    latents, sync = results["latents"], results["sync_features"]
    noise = torch.from_numpy(draw("noise", tuple(latents.shape)))
    for name, changed in (("latents", latents + 1e-3 * noise), ("sync_features", sync.roll(1, 0))):
        before, after = numbers(name, results[name]), numbers(name, changed)
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 5 * TOLERANCE[name], name
