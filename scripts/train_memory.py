"""Computes the memory for training the published transformer, without a GPU: python scripts/train_memory.py

It counts weights, gradients, AdamW's two moments and averaged weights, and adds up the tensors that the
forward pass keeps for the backward pass. These are fake tensors, which have sizes but no values.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from thinksound.data.shards import Layout
from thinksound.families.find import family_of
from thinksound.families.protocol import TRANSFORMER
from thinksound.models.flow import FlowTransformer
from thinksound.presets import LIGHT
from thinksound.training.flow import recompute_blocks
from thinksound.training.lora import TARGETS
from thinksound.training.options import LoRAOptions

FAMILY = family_of(LIGHT)
DURATION_S = FAMILY.trained_duration_s
GB = 1e9


def kept_for_backward(batch: int, recompute: bool) -> int:
    """Bytes of activations that a step keeps under bfloat16 autocast; each storage counts once."""
    layout = Layout.of(FAMILY, DURATION_S)
    storages: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage, storage.nbytes()
        return tensor

    with FakeTensorMode():
        network = cast(FlowTransformer, FAMILY.create(TRANSFORMER))
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        if recompute:
            recompute_blocks(network)
        shapes = layout.shapes
        clip, sync, text, t5 = (
            torch.zeros(batch, *shapes[name])
            for name in ("clip_features", "sync_features", "text_features", "t5_features")
        )
        latents = torch.zeros(batch, *shapes["latent_mean"])
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            conditions = network.project(clip, sync, text, t5, latents.shape[-1])
            network(latents, torch.zeros(batch), conditions)
    # This includes autocast's bfloat16 copies of the weights, which do not depend on the batch.
    return sum(size for key, (_, size) in storages.items() if key not in weights)


def adapter_parameters(rank: int) -> int:
    with torch.device("meta"):
        network = cast(FlowTransformer, FAMILY.create(TRANSFORMER))
    count = 0
    for name, module in network.named_modules():
        if re.fullmatch(TARGETS, name) and isinstance(module, nn.Linear | nn.Conv1d):
            outputs = module.weight.shape[0]
            count += rank * (module.weight[0].numel() + outputs)
    return count


def main() -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in FAMILY.create(TRANSFORMER).parameters())
    rank = LoRAOptions().rank
    added = adapter_parameters(rank)
    full = parameters * (4 + 4 + 8 + 4)
    lora = parameters * 2 + added * (4 + 4 + 8 + 4)
    print(f"all weights: {parameters / 1e6:,.0f} M trained, {full / GB:.1f} GB before activations")
    print(f"LoRA rank {rank}: {added / 1e6:,.1f} M trained, {lora / GB:.1f} GB before activations")
    print("clips  recompute  activations    all weights    LoRA   (GB)")
    for recompute in (False, True):
        for batch in (1, 4, 8, 16):
            kept = kept_for_backward(batch, recompute)
            print(
                f"{batch:5}  {'yes' if recompute else 'no ':9}  {kept / GB:11.1f}    "
                f"{(full + kept) / GB:11.1f}    {(lora + kept) / GB:4.1f}"
            )


if __name__ == "__main__":
    main()
