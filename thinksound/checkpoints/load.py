"""Weight files into networks: built on ``meta``, filled strictly by memory-mapped assignment, cast.

Strict means that every tensor of the network is in the file with the right shape, and that no tensor is
left over besides those that `network_name` is known to ignore: the copy of the VAE inside the diffusion
checkpoint (vae.ckpt replaces it), moving averages, optimiser state, the other halves of Synchformer and
T5, and tables that are computed rather than loaded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
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
from ..presets import PRESETS
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
from .registry import WEIGHTS, weight_file
from .tensors import check_finite, open_tensors

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

# Parts of names that wrappers of modules add anywhere: torch.compile, data parallel training, Lightning,
# FSDP, activation checkpointing. No network here has them.
_TRANSPARENT = (
    "_orig_mod",
    "module",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
_LONGEST_PREFIX = 8  # parts of a name before the network's own


def load_mmdit(weights_dir: Path, key: str, config: MMDiTConfig, dtype: torch.dtype) -> MMDiT:
    """The diffusion transformer, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = MMDiT(config)
    return _load(network, weights_dir, key, _checked(weights_dir, key, dtype), dtype)


def load_vae(
    weights_dir: Path, key: str, config: OobleckConfig | SpectrogramVAEConfig, dtype: torch.dtype
) -> AudioVAE:
    """The audio VAE, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = build_vae(config)
    return _load(network, weights_dir, key, _checked(weights_dir, key, dtype), dtype)


def load_synchformer(
    weights_dir: Path, key: str, config: SynchformerConfig | MotionConfig, dtype: torch.dtype
) -> Synchformer:
    """The visual tower of Synchformer, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = Synchformer(config)
    return _load(network, weights_dir, key, _checked(weights_dir, key, dtype), dtype)


def load_synchformer_offset(
    weights_dir: Path, key: str, config: OffsetConfig, dtype: torch.dtype
) -> SynchformerOffset:
    """Synchformer with its audio tower and offset head, in evaluation mode on the CPU."""
    with torch.device("meta"):
        network = SynchformerOffset(config)
    return _load(network, weights_dir, key, _checked(weights_dir, key, dtype), dtype)


def load_metaclip(weights_dir: Path, key: str, dtype: torch.dtype) -> MetaCLIP:
    """MetaCLIP and its tokenizer, in evaluation mode on the CPU."""
    folder = _checked(weights_dir, key, dtype)
    encoder = build_metaclip(folder)
    _load(encoder.model, weights_dir, key, folder, dtype)
    return encoder


def load_t5(weights_dir: Path, key: str, dtype: torch.dtype) -> T5Text:
    """The T5 encoder and its tokenizer, in evaluation mode on the CPU."""
    folder = _checked(weights_dir, key, dtype)
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
    fill(network, NamedTensors(path, key, network.state_dict()), path, dtype)
    return _frozen(network)


def own_names(key: str, path: Path) -> Collection[str]:
    """The names inside the network that the presets load from ``key``, as it lies at ``path``."""
    for preset in PRESETS.values():
        if key not in preset.weights.values():
            continue
        with torch.device("meta"):
            if key == preset.weights["dit"]:
                return MMDiT(preset.mmdit).state_dict().keys()
            if key == preset.weights["vae"]:
                return build_vae(preset.vae).state_dict().keys()
            if key == preset.weights["synchformer"]:
                return Synchformer(preset.synchformer).state_dict().keys()
        encoder = build_metaclip(path) if key == preset.weights["metaclip"] else build_t5(path)
        return encoder.model.state_dict().keys()
    return ()


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
    inner = name
    if key in ("thinksound_light", "thinksound"):
        bare = name.removeprefix("diffusion.")  # the trainer's prefix
        inner = bare.removeprefix("model.model.")
        if inner == bare:
            return None
    elif key == "vae":
        inner = name.removeprefix("autoencoder.")
        if inner == name:
            return None
    # Bundled files, and Synchformer whole, use the network's own names.
    return None if _is_ignored(key, inner) else inner


def _is_ignored(key: str, inner: str) -> bool:
    """Whether a tensor is of the published network of ``key`` but not of ours."""
    if key in ("thinksound_light", "thinksound"):
        return inner in _COMPUTED_TABLES
    if key == "synchformer":
        return not inner.startswith("vfeat_extractor.")
    if key == "metaclip":
        return inner.endswith(".position_ids")
    if key == "t5":
        # The encoder's embedding is the shared one, which is in every file.
        return not inner.startswith(("shared.", "encoder.")) or inner == "encoder.embed_tokens.weight"
    return False


class NamedTensors(Mapping[str, Tensor]):
    """The tensors of one or more files under the names of their network, mapped when looked up.

    Published names are known. Those of a fine-tune are its network's own behind one prefix, whatever its
    trainer put there; what stands outside of that prefix is ignored, as it is in the published files.
    """

    def __init__(
        self, path: Path, published_key: str | None, expected: Collection[str] = frozenset()
    ) -> None:
        """
        Args:
            path: a file, or a folder with some.
            published_key: whose published names the files may use; None if they are the network's own.
            expected: the names inside the network, to find them behind other prefixes than the published.
        """
        self.held: list[str] = []  # every name in the files, for messages
        self._found: dict[str, tuple[Mapping[str, Tensor], str]] = {}
        files = [(part, open_tensors(part)) for part in weight_paths(path)]
        self.held = [name for _, tensors in files for name in tensors]
        rename = _renaming(path, published_key, [_bare(name) for name in self.held], expected)
        for part, tensors in files:
            for name in tensors:
                inner = rename(_bare(name))
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


def _bare(name: str) -> str:
    """``name`` without what wrappers of modules add to it."""
    parts = name.split(".")
    return (
        name if set(_TRANSPARENT).isdisjoint(parts) else ".".join(p for p in parts if p not in _TRANSPARENT)
    )


def _renaming(
    path: Path, key: str | None, names: Sequence[str], expected: Collection[str]
) -> Callable[[str], str | None]:
    """How names in a file become names in its network; see `NamedTensors`."""
    if key is None:
        return lambda name: name
    published = partial(network_name, key)
    if not expected or any(published(name) in expected for name in names):
        return published
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(min(len(parts), _LONGEST_PREFIX + 1)):
            if ".".join(parts[start:]) in expected:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    prefixes = [prefix for prefix, count in counts.items() if 2 * count >= len(expected)]
    if len(prefixes) > 1:
        shown = " and ".join(map(repr, prefixes))
        raise WeightsError(
            f"{path}: holds the network {len(prefixes)} times, under {shown}; save the one that is meant "
            "in a file of its own"
        )
    if not prefixes:
        return published
    prefix = prefixes[0]
    logger.info("%s: the names of its tensors stand behind %r", path, prefix)

    def rename(name: str) -> str | None:
        inner = name.removeprefix(prefix)
        return None if not name.startswith(prefix) or _is_ignored(key, inner) else inner

    return rename


def fill(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Path,
    dtype: torch.dtype,
    finite: bool = False,
) -> None:
    """Put ``tensors`` into a network built on ``meta``, in ``dtype``; buffers that are not stored stay.

    ``finite`` says that all their numbers are known to be. Raises `WeightsError` naming ``source`` for a
    tensor that is missing, left over, of another shape, not of a floating-point type, or not finite.
    """
    what = type(network).__name__
    expected = network.state_dict()
    groups = _tied(network)
    supplied = {alias: name for name in tensors if name in expected for alias in groups.get(name, [name])}
    absent = [name for name in expected if name not in supplied]
    held = tensors.held if isinstance(tensors, NamedTensors) else list(tensors)
    if any("lora_" in name for name in held):
        raise WeightsError(
            f"{source}: a LoRA adapter, not whole weights; merge it into those that it was trained on with "
            "`thinksound train merge`"
        )
    if not supplied:
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
        # The range of float16 is smaller than that of the other formats.
        if not finite or (dtype == torch.float16 and tensor.dtype != torch.float16):
            check_finite(str(source), name, tensor, cast[name])
    left_over = [name for name in tensors if name not in expected]
    if absent or left_over:
        parts = [f"{len(absent)} of {len(expected)} tensors are missing ({absent[0]} …)"] if absent else []
        parts += [f"{len(left_over)} do not belong to it ({left_over[0]} …)"] if left_over else []
        raise WeightsError(
            f"{source}: not the weights of this {what}: {' and '.join(parts)}; it is of another size or "
            "incomplete: choose the preset that it belongs to, or download it again"
        )
    network.load_state_dict(cast, strict=True, assign=True)


def _checked(weights_dir: Path, key: str, dtype: torch.dtype) -> Path:
    """As `locate`, with every file of it checked against its record, before any is parsed."""
    path = locate(weights_dir, key, dtype)
    for part in files_of(weight_file(key), path):
        checksums.check(weights_dir, part)
    return path


def _load(network: Network, weights_dir: Path, key: str, path: Path, dtype: torch.dtype) -> Network:
    file = weight_file(key)
    parts = files_of(file, path)
    own_names = path == weights_dir / file.converted_path
    tensors = NamedTensors(path, None if own_names else key, network.state_dict())
    # Looked at once: it reads the file whole. Where one file serves two networks, its record is of one.
    alone = sum(other.path == file.path for other in WEIGHTS.values()) == 1
    fill(network, tensors, path, dtype, finite=alone and checksums.are_finite(weights_dir, parts))
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
