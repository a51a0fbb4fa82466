"""Chooses the dtype that each network computes in.

* Transformers and Synchformer keep residual streams, rotary tables, time embeddings and normalisations in
  float32, whatever the dtype of their weights.
* Some networks are always float32, as their preset says. One is ThinkSound's VAE: its decoder is a chain of
  37 convolutions without normalisation, so that rounding errors add up to audible noise
  (docs/measurements.md), and it runs once per request.
* On a GPU, float32 convolutions use TensorFloat-32 (10 bits of mantissa, as many as float16), which is
  PyTorch's default. Only the dtype "float32" makes all products keep 23 bits.
* On a CPU, "auto" is float32: bfloat16 is slower there on most machines.
"""

from __future__ import annotations

from ..errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def network_dtype(requested: str, *, always_float32: bool, on_gpu: bool, bfloat16: bool) -> str:
    """Return the dtype that a network computes in.

    Args:
        requested: one of ``DTYPES``; "auto" is bfloat16 on GPUs that have it, float16 on others,
            float32 on a CPU.
        always_float32: whether the network's preset allows no other dtype.
        on_gpu: whether the network runs on a GPU.
        bfloat16: whether that GPU computes in bfloat16.

    Raises:
        InputError: ``requested`` is not known.
    """
    if requested not in DTYPES:
        raise InputError(f"dtype {requested!r} is not known; give one of {', '.join(DTYPES)}", option="dtype")
    if requested == "auto":
        requested = "float32" if not on_gpu else "bfloat16" if bfloat16 else "float16"
    return "float32" if always_float32 else requested
