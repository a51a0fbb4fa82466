"""Plans where each network runs, and moves the networks there.

The plan is a pure function of the machine, the networks' sizes and the user's wishes. Networks do not know
about devices: `Placement` moves ready modules. With one GPU, all networks are on it. With two, the encoders
are on the second and the others on the first. With offloading, all weights stay in main memory (mapped from
the file where the dtype allows it), and one network at a time is on the GPU.
"""

from __future__ import annotations

import logging
import re
import threading
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError, PlacementError
from .precision import network_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Parts of PyTorch's messages, and what they mean.
_OUT_OF_MEMORY = {
    "can't allocate memory": "out of main memory",
    # oneDNN's only message for it, also when there is no memory for the code that it generates.
    "could not create a primitive": "out of main memory (oneDNN could not create a primitive)",
    "CUDA error: out of memory": "out of GPU memory",
    "CUBLAS_STATUS_ALLOC_FAILED": "out of GPU memory",
    "CUDNN_STATUS_ALLOC_FAILED": "out of GPU memory",
}
# What the message advises when memory runs out in a request.
_ADVICE = (
    "a shorter duration, offloading (--offload, THINKSOUND_OFFLOAD=1), a smaller dtype "
    "(--dtype bfloat16), or a second GPU (--device cuda:0,cuda:1)"
)
# Needed besides the weights: activations of a one-minute request, and CUDA's own context.
WORKING_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Need:
    """What a plan has to know about a network."""

    parameters: int
    is_encoder: bool = False  # goes to the second GPU, if there are two
    always_float32: bool = False  # whatever dtype is asked for


@dataclass(frozen=True)
class GPU:
    """What a plan has to know about a CUDA device."""

    name: str
    memory_bytes: int
    bfloat16: bool  # whether it computes in bfloat16 without emulation
    usable: bool = True  # whether the installed PyTorch was built for it


@dataclass(frozen=True)
class Machine:
    """The CUDA devices that PyTorch sees, in its order."""

    gpus: tuple[GPU, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Device and dtype of each network."""

    devices: Mapping[str, str]
    dtypes: Mapping[str, str]
    offload: bool = False
    notes: tuple[str, ...] = field(default=())  # sentences the user should read

    @property
    def concurrent_encoding(self) -> bool:
        """Whether encoders run side by side; on a CPU they would slow each other down."""
        return not self.offload and "cpu" not in self.devices.values()


def detect_machine() -> Machine:
    """Describe the CUDA devices of this machine; none if its driver is too old for PyTorch."""
    import torch

    if not torch.cuda.is_available():  # device_count() also counts devices that cannot be used
        return Machine()
    built_for = torch.cuda.get_arch_list()
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            GPU(
                properties.name,
                properties.total_memory,
                # Older GPUs emulate bfloat16 slowly; compute capability 8.0 brought the hardware.
                bfloat16=properties.major >= 8,
                usable=runs_on(built_for, properties.major, properties.minor),
            )
        )
    return Machine(tuple(gpus))


def runs_on(built_for: Collection[str], major: int, minor: int) -> bool:
    """Whether PyTorch built for these architectures runs on a GPU of compute capability ``major.minor``.

    Machine code ("sm_86") runs on the same and later minor versions of its major version; portable code
    ("compute_90") runs on all later versions. Names of other forms are ignored; without any known name the
    answer is True.
    """
    codes = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in built_for]
    known = [(code[1] == "sm", int(code[2]), int(code[3])) for code in codes if code]
    return not known or any(
        (major, minor) >= (code_major, code_minor) and (major == code_major or not machine_code)
        for machine_code, code_major, code_minor in known
    )


def make_plan(
    machine: Machine,
    needs: Mapping[str, Need],
    device: str = "auto",
    dtype: str = "auto",
    offload: bool = False,
) -> Plan:
    """Decide where every network goes; the same arguments always give the same plan.

    Args:
        machine: the GPUs that there are.
        needs: what each network needs, by name.
        device: "auto" (the first two usable GPUs if both are large enough, else the first, else the
            CPU), "cpu", "cuda", "cuda:N", or two devices "cuda:M,cuda:N" (encoders on the second, the
            other networks on the first).
        dtype: see `precision.network_dtype`.
        offload: keep weights in main memory and bring one network at a time to the GPU.

    Raises:
        InputError: ``device`` or ``dtype`` is not known.
        PlacementError: the device is missing, or PyTorch was not built for it.
    """
    chosen = _choose_devices(machine, device)
    gpus = {name: machine.gpus[int(name.removeprefix("cuda:"))] for name in chosen if name != "cpu"}
    devices = {name: chosen[-1] if need.is_encoder else chosen[0] for name, need in needs.items()}
    dtypes = {
        name: network_dtype(
            dtype,
            always_float32=need.always_float32,
            on_gpu=bool(gpus),
            bfloat16=bool(gpus) and gpus[devices[name]].bfloat16,
        )
        for name, need in needs.items()
    }
    if not gpus:
        return Plan(devices, dtypes, notes=("offloading does nothing on a CPU",) if offload else ())
    if offload:
        return Plan(devices, dtypes, offload=True)

    sizes = {name: need.parameters * BYTES[dtypes[name]] for name, need in needs.items()}
    for name, gpu in gpus.items():
        needed = sum(size for network, size in sizes.items() if devices[network] == name) + WORKING_BYTES
        if needed > gpu.memory_bytes:
            if device == "auto" and len(chosen) == 2:  # one may be small, such as the one for the screen
                return make_plan(machine, needs, chosen[0], dtype)
            note = (
                f"{gpu.name} ({name}) has {_gib(gpu.memory_bytes)}, the networks need about {_gib(needed)}: "
                "offloading, one network at a time on the GPU"
            )
            return Plan(devices, dtypes, offload=True, notes=(note,))
    return Plan(devices, dtypes)


def one_device(machine: Machine, device: str) -> str:
    """Return the device for a single network: the first of those that `make_plan` would use."""
    return _choose_devices(machine, device)[0]


def _choose_devices(machine: Machine, device: str) -> list[str]:
    """Return two devices, the second one for the encoders, or one device for all networks."""
    available = [f"cuda:{index}" for index in range(len(machine.gpus))]
    if device == "auto":
        usable = [name for name, gpu in zip(available, machine.gpus, strict=True) if gpu.usable]
        return usable[:2] or ["cpu"]
    if device == "cpu":
        return ["cpu"]
    names = ["cuda:0" if name.strip() == "cuda" else name.strip() for name in device.split(",")]
    if len(names) > 2 or not all(name.startswith("cuda:") and name[5:].isdecimal() for name in names):
        raise InputError(
            f"device {device!r} is not known; give auto, cpu, cuda, cuda:N or cuda:M,cuda:N", option="device"
        )
    for name in names:
        if name not in available:
            found = ", ".join(f"{n} ({gpu.name})" for n, gpu in zip(available, machine.gpus, strict=True))
            raise PlacementError(
                f"device {name} is not there; this machine has {found or 'no CUDA GPU'}; "
                f"give {' or '.join([*available, 'cpu'])}"
            )
        gpu = machine.gpus[available.index(name)]
        if not gpu.usable:
            raise PlacementError(
                f"the installed PyTorch is not built for {gpu.name} ({name}); "
                "install a build that is, or give another device, such as cpu"
            )
    return names


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


class Placement:
    """Moves ready networks as a plan says; their weights do not change any more."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # Each tensor of an offloaded network: the table and key that hold it, and its value in main memory.
        self._home: dict[str, list[tuple[dict[str, Any], str, Tensor]]] = {}
        self._visit = threading.Lock()  # held while an offloaded network is on the GPU

    def place(self, name: str, module: nn.Module) -> None:
        """Move a ready network to its device; an offloaded one stays in main memory."""
        if self.plan.offload:
            self._home[name] = [
                (table, key, tensor)
                for part in module.modules()
                for table in (part._parameters, part._buffers)
                for key, tensor in table.items()
                if tensor is not None
            ]
        else:
            module.to(self.plan.devices[name])

    @contextmanager
    def on_device(self, name: str) -> Iterator[None]:
        """Have the named network on its device inside the block; offloaded networks take turns."""
        if not self.plan.offload:
            yield
            return
        import torch
        from torch import nn

        device = self.plan.devices[name]
        with self._visit:
            try:
                for table, key, tensor in self._home[name]:
                    visitor = tensor.to(device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    table[key] = nn.Parameter(visitor, requires_grad=False) if is_parameter else visitor
                yield
            finally:
                for table, key, tensor in self._home[name]:
                    table[key] = tensor
                torch.cuda.empty_cache()


@contextmanager
def memory_errors(advice: str = _ADVICE) -> Iterator[None]:
    """Turn errors of running out of memory into one that says what to try; frees the memory.

    Raises:
        PlacementError: memory ran out inside the block.
    """
    import torch

    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError):
            message = "out of memory"
        elif isinstance(error, torch.OutOfMemoryError):
            message = str(error).split(". ")[0]
        else:
            # PyTorch's CPU allocator and CUDA's libraries raise a plain RuntimeError.
            message = next((words for sign, words in _OUT_OF_MEMORY.items() if sign in str(error)), "")
        if not message:
            raise
        # The traceback's stack frames hold activations; without this, the error raised below would keep them.
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise PlacementError(f"{message}; try {advice}")
