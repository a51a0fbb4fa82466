"""LoRA (https://arxiv.org/abs/2106.09685) through peft: training a few added weights instead of all.

An adapter is stored in peft's own format, which ``PeftModel.from_pretrained`` reads. It is merged into the
network's weights for use.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import InputError, OutputError
from ..families.protocol import TRANSFORMER
from ..media.files import make_folder
from ..models.flow import FlowTransformer
from .loop import seeded
from .options import LoRAOptions

ADAPTER = "adapter"
# In every block: attention, the layer after it, and the gated MLPs, linear and convolutional.
TARGETS = r"(joint|fused)_blocks\..+\.(qkv|linear1|w1|w2|w3)"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of names in peft's files


def check_peft() -> None:
    """Check that peft is installed.

    Raises:
        InputError: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise InputError(
            "LoRA needs the package peft, which is not installed: pip install peft (the extra `train`)"
        ) from None


class Adapter:
    """Low-rank matrices beside the frozen weights of a transformer; at first they change nothing."""

    def __init__(self, network: FlowTransformer, options: LoRAOptions, seed: int) -> None:
        """Add the matrices to ``network`` in float32, with values drawn from ``seed``; freeze all else."""
        from peft import LoraConfig, inject_adapter_in_model

        self._config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=TARGETS)
        seeded(lambda: inject_adapter_in_model(self._config, network), seed)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def write(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write the adapter of the transformer in ``networks`` into the subfolder ``adapter`` of ``folder``.

        Raises:
            OutputError: it cannot be written.
        """
        from peft import get_peft_model_state_dict

        tensors: dict[str, Tensor] = get_peft_model_state_dict(networks[TRANSFORMER])
        named = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        make_folder(folder / ADAPTER)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            new = Path(name)
            try:
                (new / _WEIGHTS).write_bytes(save(named, {"format": "pt"}))
            except OSError as error:
                raise OutputError(f"{folder / ADAPTER}: cannot be written ({error.strerror})") from error
            self._config.save_pretrained(str(new))
            for file in (_WEIGHTS, _CONFIG):
                (new / file).replace(folder / ADAPTER / file)


def merge_adapter(network: FlowTransformer, folder: Path) -> None:
    """Add an adapter in peft's format to the weights of the network that it was trained for.

    Raises:
        InputError: the folder holds no adapter, or one for another network.
    """
    from peft import PeftModel

    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(f"{folder}: no adapter (there is no {file}); give the folder {ADAPTER} of a run")
    try:
        with warnings.catch_warnings():
            # peft only warns if a part of the adapter is missing.
            warnings.simplefilter("error", UserWarning)
            merged = PeftModel.from_pretrained(network, str(folder), torch_device="cpu").merge_and_unload()
    except (RuntimeError, ValueError, KeyError, TypeError, UserWarning, SafetensorError) as error:
        raise InputError(
            f"{folder}: not an adapter for this network ({str(error).splitlines()[0]}); give the preset, "
            "or the weights, that it was trained with"
        ) from error
    assert merged is network
