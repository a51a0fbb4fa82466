"""Loading of weight files: a network is built on ``meta``, filled from memory-mapped tensors, and cast.

Loading is strict: every tensor of the network must be in the file with the right shape, and every tensor in
the file must belong to the network, except those that the registry ignores: the copy of the VAE inside the
diffusion checkpoint (vae.ckpt replaces it), moving averages, optimiser state, the unused parts of Synchformer
and T5, and tables that are computed rather than loaded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from . import checksums
from .locate import (
    describe_missing,
    files_of,
    is_complete,
    is_drawn,
    published_path,
    read_metadata,
    single_file,
    weight_paths,
)
from .registry import SIGNS, WEIGHTS, WeightFile, weight_file
from .tensors import check_finite, open_tensors
from .untrained import drawn_tensors

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)

# Converts the tensors of a published file, under the network's names, to the network's own tensors.
Fold = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

# Parts that module wrappers insert anywhere in a name: torch.compile, data parallel training, Lightning,
# FSDP, activation checkpointing. No network here uses them itself.
_TRANSPARENT = (
    "_orig_mod",
    "module",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
_LONGEST_PREFIX = 8  # parts of a name before the network's own name


class Encoder(Protocol):
    """A network together with what else it needs, such as a tokenizer."""

    @property
    def model(self) -> nn.Module: ...


Built = TypeVar("Built", bound=nn.Module | Encoder)


def network_of(built: nn.Module | Encoder) -> nn.Module:
    """Returns the network itself, without its tokenizer."""
    return built if isinstance(built, nn.Module) else built.model


def load_network(
    build: Callable[[Path], Built], weights_dir: Path, key: str, dtype: torch.dtype, fold: Fold | None = None
) -> Built:
    """Returns a network with its weights, in evaluation mode on the CPU.

    Args:
        build: builds the network on ``meta``, from the path of its weight file or folder.
        weights_dir: the folder of weight files.
        key: of the weights, in `registry`.
        dtype: of the network's parameters and buffers.
        fold: converts the tensors of the published file to those of the network, where they differ.

    Raises:
        WeightsError: the weights are missing, damaged or of another network.
    """
    file, path = weight_file(key), locate(weights_dir, key, dtype)
    parts = files_of(file, path)
    for part in parts:  # before any file is parsed
        checksums.check(weights_dir, part)
    built = build(path)
    network = network_of(built)
    if is_drawn(file, path):
        fill(network, drawn_tensors(key, network.state_dict()), path, dtype, finite=True)
        _freeze(network)
        return built
    tensors = read_tensors(path, file, network.state_dict().keys())
    # Values are checked for NaN once only, since that reads the whole file. The record of a file that serves
    # two networks may come from the other one.
    alone = sum(other.path == file.path for other in WEIGHTS.values()) == 1
    finite = alone and checksums.are_finite(weights_dir, parts)
    fill(network, tensors.folded(fold), path, dtype, finite, tensors.held)
    checksums.record(weights_dir, parts)
    logger.info("%s: %s in %s", path, type(network).__name__, dtype)
    _freeze(network)
    return built


def load_file(
    network: Network, path: Path, key: str, dtype: torch.dtype, fold: Fold | None = None
) -> Network:
    """Fill a network that was built on ``meta`` from any file; returns it in evaluation mode on the CPU.

    Args:
        network: to be filled.
        path: a published file, or one with the network's own names, such as a converted one.
        key: of the registry entry whose published names the file may use.
        dtype: of the network's parameters and buffers.
        fold: as for `load_network`.

    Raises:
        WeightsError: there is no such file, it is damaged, or it is of another network.
    """
    tensors = read_tensors(path, weight_file(key), network.state_dict().keys())
    fill(network, tensors.folded(fold), path, dtype, held=tensors.held)
    return _freeze(network)


def read_tensors(path: Path, file: WeightFile, expected: Collection[str] = frozenset()) -> NamedTensors:
    """Returns the tensors at ``path`` under the names inside their network.

    Files that this project wrote hold exactly the network's own tensors, and are marked in their metadata.

    Args:
        path: a weight file, or a folder of them.
        file: the registry entry whose published names the tensors may have.
        expected: the names inside the network; finds them behind a prefix that is not published.
    """
    return NamedTensors(path, file, _is_own(single_file(file, path)), expected)


def _is_own(path: Path) -> bool:
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        return read_metadata(path).get(NAMES) == OWN
    except WeightsError:
        return False  # damaged: reading the tensors raises the error


# Entry in the metadata of files that this project wrote: their tensors have the network's own names.
NAMES, OWN = "names", "network"


def locate(weights_dir: Path, key: str, dtype: torch.dtype) -> Path:
    """Returns the file or folder that ``key`` is loaded from for ``dtype``.

    Prefers the converted copy if it holds that dtype or float32 and was made from the published file in the
    folder; then the published file; then a converted copy of another dtype.

    Raises:
        WeightsError: there is none of them; the message says which file to put where.
    """
    file = weight_file(key)
    published = published_path(weights_dir, file)
    converted = weights_dir / file.converted_path
    have_published = is_complete(file, published)
    if not is_complete(file, converted):
        if have_published:
            return published
        raise WeightsError(describe_missing(weights_dir, [file]))
    metadata = read_metadata(single_file(file, converted))
    wanted, held = str(dtype).removeprefix("torch."), metadata.get("dtype")
    if have_published and held not in (wanted, "float32"):
        logger.info("%s holds %s, not %s: loading %s", converted, held, wanted, published)
        return published
    made_from = metadata.get("source_sha256")
    here = _source(weights_dir, file, published) if have_published else None
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


class NamedTensors(Mapping[str, Tensor]):
    """The tensors of one or more files under the names inside their network, mapped when looked up.

    Published names are converted by the registry. A fine-tuned checkpoint may have the network's names behind
    one other prefix; tensors without that prefix are ignored, as in the published files.
    """

    def __init__(
        self,
        path: Path,
        file: WeightFile,
        is_own: bool = False,
        expected: Collection[str] = frozenset(),
    ) -> None:
        """
        Args:
            path: a weight file, or a folder of them.
            file: the registry entry whose published names the files may use.
            is_own: whether the files use the network's own names instead.
            expected: the names inside the network; finds them behind a prefix that is not published.
        """
        self._is_own = is_own
        self.held: list[str] = []  # every name in the files, for messages
        self._found: dict[str, tuple[Mapping[str, Tensor], str]] = {}
        files = [(part, open_tensors(part)) for part in weight_paths(path, file.layouts)]
        self.held = [name for _, tensors in files for name in tensors]
        rename = _renaming(path, None if is_own else file, [_bare(name) for name in self.held], expected)
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

    def folded(self, fold: Fold | None) -> Mapping[str, Tensor]:
        """These tensors as the network has them; ``fold`` is only for published ones."""
        return self if fold is None or self._is_own else fold(self)


def _bare(name: str) -> str:
    """Returns ``name`` without the parts that module wrappers insert."""
    parts = name.split(".")
    return (
        name if set(_TRANSPARENT).isdisjoint(parts) else ".".join(p for p in parts if p not in _TRANSPARENT)
    )


def _renaming(
    path: Path, file: WeightFile | None, names: Sequence[str], expected: Collection[str]
) -> Callable[[str], str | None]:
    """Returns the function from names in a file to names in its network; see `NamedTensors`."""
    if file is None:
        return lambda name: name
    published = file.network_name
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
        return None if not name.startswith(prefix) or file.ignores(inner) else inner

    return rename


def fill(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Path,
    dtype: torch.dtype,
    finite: bool = False,
    held: Sequence[str] | None = None,
) -> None:
    """Put ``tensors`` into a network built on ``meta``; non-persistent buffers are not changed.

    Args:
        network: to be filled.
        tensors: by the network's names.
        source: the file or folder, for messages.
        dtype: of the network's parameters and buffers.
        finite: whether all values are known to be finite, which saves the check.
        held: every name in the source, for messages; by default the names of ``tensors``.

    Raises:
        WeightsError: a tensor is missing, left over, of another shape, not of a floating-point dtype, or not
            finite.
    """
    what = type(network).__name__
    expected = network.state_dict()
    groups = _tied(network)
    supplied = {alias: name for name in tensors if name in expected for alias in groups.get(name, [name])}
    absent = [name for name in expected if name not in supplied]
    held = list(tensors) if held is None else held
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
        # Finite values of another dtype may be out of the range of float16.
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


def _freeze(network: Network) -> Network:
    network.requires_grad_(False)
    network.eval()
    return network


def _tied(network: nn.Module) -> dict[str, list[str]]:
    """Returns, for each parameter name, all names of that same parameter in the network."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() for name in group}


def _looks_like(names: Sequence[str]) -> str:
    for part, description in SIGNS:
        if any(part in name for name in names):
            return description
    return "weights of something else"


def _source(weights_dir: Path, file: WeightFile, published: Path) -> str | None:
    """Returns the recorded hash of the published file, as `convert` stores it; None if there is no record."""
    hashes = [checksums.recorded_sha256(weights_dir, path) for path in weight_paths(published, file.layouts)]
    known = [sha256 for sha256 in hashes if sha256 is not None]
    return ",".join(known) if len(known) == len(hashes) else None
