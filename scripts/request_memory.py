"""GPU memory of a request, computed without a GPU: python scripts/request_memory.py --preset P --duration S

Every stage runs on fake tensors, which have sizes and no values, in the dtypes that a GPU gets. The tensors
that are alive at the same time are added up; what an allocator or a kernel takes besides is not counted.
"""

from __future__ import annotations

import argparse
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thinksound.checkpoints.load import network_of
from thinksound.commands.arguments import number
from thinksound.families.find import family_of, published_network
from thinksound.families.flow import FlowModel
from thinksound.presets import PRESETS, TINY, get_preset
from thinksound.runtime.placement import GPU, Machine, make_plan
from thinksound.sampling.guidance import guided_velocity

_GPU = GPU("one that is large enough", 2**40, bfloat16=True)
GIB = 2**30
_PRESETS = [name for name in PRESETS if name != TINY.name]  # whose phases are found from values


class Peak(TorchDispatchMode):
    """Adds up the storages that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "cuda":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.highest = max(self.highest, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._seen.pop(key)


def allocate(network: nn.Module, dtype: torch.dtype) -> None:
    """Give a network built on ``meta`` fake tensors on the GPU; inside of a fake mode only."""
    for module in network.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in table.items():
                if tensor is not None:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    new = torch.empty(tensor.shape, dtype=kind, device="cuda:0")
                    table[key] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/request_memory.py", description=__doc__)
    parser.add_argument("--preset", choices=_PRESETS, required=True)
    parser.add_argument("--duration", type=number, default=8.0, metavar="S")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    arguments = parser.parse_args()
    preset = get_preset(arguments.preset)
    family, seconds = family_of(preset), arguments.duration
    plan = make_plan(Machine((_GPU,)), preset.networks, dtype=arguments.dtype)
    built = {name: published_network(family, name) for name in preset.networks}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name, network in built.items():
            allocate(network_of(network), getattr(torch, plan.dtypes[name]))
        model = family.assemble(built)
        sizes = [p.untyped_storage().nbytes() for each in model.networks.values() for p in each.parameters()]
        weights = sum(sizes)
        stages: dict[str, int] = {}
        for step in model.frame_steps:
            view = next(view for view in family.views if view.name == step.view)
            frames = torch.empty(view.count(seconds), view.size, view.size, 3, dtype=torch.uint8)
            with Peak() as peak:
                step.encode(frames)
            stages[f"frames ({step.network})"] = peak.highest
        assert isinstance(model, FlowModel)
        features = {
            each.name: torch.empty(each.shape(seconds), device="cuda:0") for each in family.conditions
        }
        noise = torch.empty(1, family.sound.latent_dim, family.sound.latent_length(seconds), device="cuda:0")
        given = [features[each.name][None] for each in family.conditions]
        with Peak() as peak:
            velocity = guided_velocity(model.transformer, given, noise.shape[-1], preset.guidance_scale)
            noise = noise - 0.1 * velocity(noise, 0.5)
        stages["one step of sampling"] = peak.highest
        sound = noise
        for decoding in model.decoding:
            with Peak() as peak:
                sound = decoding.decode(sound)
            stages[f"sound ({decoding.network})"] = peak.highest
    print(f"{preset.name}, {seconds:g} s, {arguments.dtype}: weights {weights / GIB:.2f} GiB")
    for stage, size in stages.items():
        print(f"  {stage:<24} {size / GIB:6.2f} GiB of activations")
    print(f"  together at most         {(weights + max(stages.values())) / GIB:6.2f} GiB")


if __name__ == "__main__":
    main()
