"""Weight files into networks: built on ``meta``, filled strictly by memory-mapped assignment, cast.

Strict means that every tensor of the network is in the file with the right shape, and that no tensor is
left over besides those that `network_name` is known to ignore: the copy of the VAE inside the diffusion
checkpoint (vae.ckpt replaces it), moving averages, optimiser state, the other halves of Synchformer and
T5, and tables that are computed rather than loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import (
    MMDiTConfig,
    MotionConfig,
    OffsetConfig,
    OobleckConfig,
    SpectrogramVAEConfig,
    SynchformerConfig,
)
from ..encoders.metaclip import MetaCLIP, build_metaclip
from ..encoders.t5 import T5Text, build_t5
from ..errors import WeightsError
from ..models.mmdit import MMDiT
from ..models.oobleck import AudioVAE
from ..models.spectrogram_vae import build_vae
from ..models.synchformer import Synchformer
from ..models.synchformer_offset import SynchformerOffset
from . import checksums
from .locate import (
    describe_missing,
    files_of,
    is_complete,
    published_path,
    read_metadata,
    single_file,
    weight_paths,
)
from .registry import weight_file
from .tensors import open_tensors

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)

# Non-persistent buffers that an older version of the published network stored.
_COMPUTED_TABLES = ("t_embed.freqs", "latent_rot", "clip_rot")

# How a file that is not the right one is recognised, by a part of any of its tensor names.
_LOOKS_LIKE = (
    ("vfeat_extractor.", "Synchformer weights"),
    ("joint_blocks.", "weights of the diffusion transformer"),
    ("autoencoder.", "weights of the audio VAE"),
    ("decoder.layers.", "weights of the audio VAE"),
    ("vision_model.", "CLIP weights"),
    ("encoder.block.", "T5 weights"),
)


def load_mmdit(weights_dir: Path, key: str, config: MMDiTConfig, dtype: torch.dtype) -> MMDiT:
    """The diffusion transformer, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = MMDiT(config)
    return _load(network, weights_dir, key, locate(weights_dir, key, dtype), dtype)


def load_vae(
    weights_dir: Path, key: str, config: OobleckConfig | SpectrogramVAEConfig, dtype: torch.dtype
) -> AudioVAE:
    """The audio VAE, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = build_vae(config)
    return _load(network, weights_dir, key, locate(weights_dir, key, dtype), dtype)


def load_synchformer(
    weights_dir: Path, key: str, config: SynchformerConfig | MotionConfig, dtype: torch.dtype
) -> Synchformer:
    """The visual tower of Synchformer, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = Synchformer(config)
    return _load(network, weights_dir, key, locate(weights_dir, key, dtype), dtype)


def load_synchformer_offset(
    weights_dir: Path, key: str, config: OffsetConfig, dtype: torch.dtype
) -> SynchformerOffset:
    """Synchformer with its audio tower and offset head, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = SynchformerOffset(config)
    return _load(network, weights_dir, key, locate(weights_dir, key, dtype), dtype)


def load_metaclip(weights_dir: Path, key: str, dtype: torch.dtype) -> MetaCLIP:
    """MetaCLIP and its tokenizer, in evaluation mode on the CPU."""
    folder = locate(weights_dir, key, dtype)
    encoder = build_metaclip(folder)
    _load(encoder.model, weights_dir, key, folder, dtype)
    return encoder


def load_t5(weights_dir: Path, key: str, dtype: torch.dtype) -> T5Text:
    """The T5 encoder and its tokenizer, in evaluation mode on the CPU."""
    folder = locate(weights_dir, key, dtype)
    encoder = build_t5(folder)
    _load(encoder.model, weights_dir, key, folder, dtype)
    return encoder


def load_file(network: Network, path: Path, key: str, dtype: torch.dtype) -> Network:
    """A network that was built on ``meta``, filled from any file, in evaluation mode on the CPU.

    Args:
        network: to be filled.
        path: a published file, or one with the network's own names, such as a converted one.
        key: whose published names the file may use.
        dtype: of the network's values.

    Raises:
        WeightsError: there is no such file, it is damaged, or it is of another network.
    """
    expected = network.state_dict()
    own_names = any(name in expected for name in open_tensors(path))
    fill(network, NamedTensors(path, None if own_names else key), path, dtype)
    return _frozen(network)


def locate(weights_dir: Path, key: str, dtype: torch.dtype) -> Path:
    """The file or folder that ``key`` is loaded from when ``dtype`` is asked for.

    The converted copy is preferred when it holds that dtype or float32 and was made from the published
    file that is here; then the published one; then a converted copy of another dtype. Raises
    `WeightsError` saying what to put where if there is none.
    """
    file = weight_file(key)
    published = published_path(weights_dir, file)
    converted = weights_dir / file.converted_path
    have_published = is_complete(file, published)
    if not is_complete(file, converted):
        if have_published:
            return published
        raise WeightsError(describe_missing(weights_dir, [file]))
    metadata = read_metadata(single_file(converted))
    wanted, held = str(dtype).removeprefix("torch."), metadata.get("dtype")
    if have_published and held not in (wanted, "float32"):
        logger.info("%s holds %s, not %s: loading %s", converted, held, wanted, published)
        return published
    made_from = metadata.get("source_sha256")
    here = _source(weights_dir, published) if have_published else None
    if None not in (made_from, here) and made_from != here:
        logger.warning(
            "%s was made from another file than %s: loading the latter; convert again", converted, published
        )
        return published
    if held not in (wanted, "float32"):
        logger.info(
            "%s holds %s and there is no published file: %s is derived from it", converted, held, wanted
        )
    return converted


def network_name(key: str, name: str) -> str | None:
    """The name inside its network of a tensor of the published file of ``key``; None if it is ignored."""
    if key in ("thinksound_light", "thinksound"):
        bare = name.removeprefix("diffusion.")  # the trainer's prefix
        inner = bare.removeprefix("model.model.")
        return None if inner == bare or inner in _COMPUTED_TABLES else inner
    if key == "vae":
        inner = name.removeprefix("autoencoder.")
        return None if inner == name else inner
    if key == "synchformer":
        return name if name.startswith("vfeat_extractor.") else None
    if key == "metaclip":
        return None if name.endswith(".position_ids") else name
    if key == "t5":
        # The encoder's embedding is the shared one, which is in every file.
        ignored = not name.startswith(("shared.", "encoder.")) or name == "encoder.embed_tokens.weight"
        return None if ignored else name
    return name  # bundled files, and Synchformer whole, use the network's own names


class NamedTensors(Mapping[str, Tensor]):
    """The tensors of one or more files under the names of their network, mapped when looked up."""

    def __init__(self, path: Path, published_key: str | None) -> None:
        """``published_key``: whose published names the files use; None if they are the network's own."""
        self.held: list[str] = []  # every name in the files, for messages
        self._found: dict[str, tuple[Mapping[str, Tensor], str]] = {}
        for part in weight_paths(path):
            tensors = open_tensors(part)
            for name in tensors:
                self.held.append(name)
                inner = name if published_key is None else network_name(published_key, name)
                if inner is None:
                    continue
                if inner in self._found:
                    raise WeightsError(f"{part}: {inner} is there twice; give the published file")
                self._found[inner] = (tensors, name)

    def __getitem__(self, name: str) -> Tensor:
        tensors, held_name = self._found[name]
        return tensors[held_name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> None:
    """Put ``tensors`` into a network built on ``meta``, in ``dtype``; buffers that are not stored stay.

    Raises `WeightsError` naming ``source`` for a tensor that is missing, left over, of another shape or
    not of a floating-point type.
    """
    what = type(network).__name__
    expected = network.state_dict()
    groups = _tied(network)
    supplied = {alias: name for name in tensors if name in expected for alias in groups.get(name, [name])}
    absent = [name for name in expected if name not in supplied]
    if not supplied:
        held = tensors.held if isinstance(tensors, NamedTensors) else list(tensors)
        raise WeightsError(
            f"{source}: holds nothing of {what}, it looks like {_looks_like(held)}; "
            "put the published file there"
        )
    cast: dict[str, Tensor] = {}
    for name, origin in supplied.items():
        if origin in cast:
            cast[name] = cast[origin]
            continue
        tensor = tensors[origin]
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{source}: of another size: {name} is {tuple(tensor.shape)}, {what} has "
                f"{tuple(expected[name].shape)}; choose the preset that these weights belong to"
            )
        if not tensor.is_floating_point():
            raise WeightsError(
                f"{source}: {name} holds {tensor.dtype} instead of numbers with a fraction; download it again"
            )
        cast[name] = tensor.to(dtype)
    left_over = [name for name in tensors if name not in expected]
    if absent or left_over:
        parts = [f"{len(absent)} of {len(expected)} tensors are missing ({absent[0]} …)"] if absent else []
        parts += [f"{len(left_over)} do not belong to it ({left_over[0]} …)"] if left_over else []
        raise WeightsError(
            f"{source}: not the weights of this {what}: {' and '.join(parts)}; it is of another size or "
            "incomplete: choose the preset that it belongs to, or download it again"
        )
    network.load_state_dict(cast, strict=True, assign=True)


def _load(network: Network, weights_dir: Path, key: str, path: Path, dtype: torch.dtype) -> Network:
    file = weight_file(key)
    parts = files_of(file, path)
    for part in parts:
        checksums.check(weights_dir, part)
    own_names = path == weights_dir / file.converted_path
    fill(network, NamedTensors(path, None if own_names else key), path, dtype)
    checksums.record(weights_dir, parts)
    logger.info("%s: %s in %s", path, type(network).__name__, dtype)
    return _frozen(network)


def _frozen(network: Network) -> Network:
    network.requires_grad_(False)
    network.eval()
    return network


def _tied(network: nn.Module) -> dict[str, list[str]]:
    """For each parameter name, all names under which the network holds that same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() for name in group}


def _looks_like(names: list[str]) -> str:
    for part, description in _LOOKS_LIKE:
        if any(part in name for name in names):
            return description
    return "weights of something else"


def _source(weights_dir: Path, published: Path) -> str | None:
    """The recorded hash of what is published, as `convert` notes it; None if it was never recorded."""
    hashes = [checksums.recorded_sha256(weights_dir, path) for path in weight_paths(published)]
    known = [sha256 for sha256 in hashes if sha256 is not None]
    return ",".join(known) if len(known) == len(hashes) else None
