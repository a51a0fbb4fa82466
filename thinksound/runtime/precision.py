"""Which number format each network computes in.

* The residual streams, rotary tables, time embedding and normalisations are float32 inside the
  networks whatever the format of the weights.
* The VAE stays in float32: its decoder is a chain of 35 convolutions without any normalisation,
  so rounding adds up to audible noise (docs/measurements.md), and it runs once per request.
* On a GPU float32 convolutions use TensorFloat-32 (10 bits of mantissa, as many as float16), PyTorch's
  default; only when float32 is asked for by name do all products keep 23 bits.
* A CPU computes everything in float32: bfloat16 is slower there on most machines.
"""

from __future__ import annotations

from ..errors import InputError
from ..presets import NETWORKS

DTYPES = ("auto", "float32", "bfloat16", "float16")
ALWAYS_FLOAT32 = frozenset({"vae"})


def network_dtypes(requested: str, *, on_gpu: bool, bfloat16: bool) -> dict[str, str]:
    """Number format per network.

    Args:
        requested: one of ``DTYPES``; "auto" is bfloat16 on GPUs that have it, float16 on others,
            float32 on a CPU.
        on_gpu: whether the networks run on a GPU.
        bfloat16: whether the GPU computes in bfloat16.
    """
    if requested not in DTYPES:
        raise InputError(f"dtype {requested!r} is not known; give one of {', '.join(DTYPES)}", option="dtype")
    if requested == "auto":
        requested = "float32" if not on_gpu else "bfloat16" if bfloat16 else "float16"
    return {name: "float32" if name in ALWAYS_FLOAT32 else requested for name in NETWORKS}
