"""The published sizes on a GPU that is not there.

PyTorch's fake tensors carry device, dtype and shape but no values, and every operation checks
that its operands agree. So this finds, on any machine, the tensor that stayed on the CPU and the format
that was not cast. What a GPU computes it cannot show.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from support.reference import four
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from thinksound.checkpoints.registry import bundled_dir
from thinksound.encoders import metaclip, t5
from thinksound.encoders.views import clip_frame_count, sync_frame_count
from thinksound.families.find import family_of
from thinksound.families.thinksound import ThinkSoundFamily
from thinksound.models.mmdit import MMDiT
from thinksound.presets import LIGHT
from thinksound.runtime.placement import GPU, Machine, make_plan
from thinksound.sampling.guidance import guided_velocity

pytestmark = pytest.mark.slow

PAIR = (GPU("first", 24 * 2**30, bfloat16=True), GPU("second", 24 * 2**30, bfloat16=True))


def allocate(network: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Give a network built on ``meta`` fake tensors; inside of a fake mode only."""
    for module in network.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in table.items():
                if tensor is not None:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    new = torch.empty(tensor.shape, dtype=kind, device=device)
                    table[key] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new


@pytest.mark.parametrize("gpus", [PAIR[:1], PAIR], ids=["one GPU", "two GPUs"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@torch.no_grad()
def test_devices_and_number_formats_agree_from_pictures_to_sound(gpus, dtype):
    plan = make_plan(Machine(gpus), LIGHT.networks, dtype=dtype)
    family = family_of(LIGHT)
    with torch.device("meta"):
        built = {name: family.create(name) for name in ("synchformer", "dit", "vae")}
    clip = metaclip.build_metaclip(bundled_dir() / "tiny" / "metaclip")  # for its tokenizer
    clip.model = metaclip.build_network(metaclip.PUBLISHED_CONFIG)
    text = t5.build_network(t5.PUBLISHED_CONFIG)
    networks = {"metaclip": clip.model, "t5": text, **built}
    (decoding,) = family.decoding(built)
    mmdit = cast(MMDiT, built["dit"])
    see = cast(ThinkSoundFamily, family).sync_encoder(built["synchformer"])

    with FakeTensorMode():
        for name, network in networks.items():
            allocate(network, plan.devices[name], getattr(torch, plan.dtypes[name]))
        pictures = torch.empty(clip_frame_count(9), 224, 224, 3, dtype=torch.uint8)
        sync_pictures = torch.empty(sync_frame_count(9), 224, 224, 3, dtype=torch.uint8)
        tokens = torch.zeros(1, 77, dtype=torch.int64, device=plan.devices["t5"])
        features = (
            clip.encode_frames(pictures)[None],
            see(sync_pictures)[None],
            clip.model.text_model(tokens, tokens + 1).float(),
            text(tokens, tokens + 1).float(),
        )
        assert {part.device for part in features} == {torch.device(plan.devices["t5"])}
        assert [tuple(part.shape) for part in features] == [
            (1, 72, 1024),
            (1, 216, 768),
            (1, 77, 1024),
            (1, 77, 2048),
        ]
        noise = torch.empty(1, 64, family.sound.latent_length(9), device=plan.devices["dit"])
        given = four(part.cpu().to(plan.devices["dit"]) for part in features)
        velocity = guided_velocity(mmdit, given, noise.shape[-1], 5.0)
        latents = noise - 0.5 * velocity(noise, 1.0)
        assert (latents.dtype, latents.shape) == (torch.float32, (1, 64, 194))
        audio = decoding.decode(latents)
        assert (audio.dtype, audio.shape) == (torch.float32, (1, 2, 194 * 2048))
        assert audio.device == torch.device(plan.devices["vae"])
