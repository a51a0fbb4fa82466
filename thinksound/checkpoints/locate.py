"""Which published, converted and bundled files are in the weights folder, and which are missing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from ..errors import WeightsError
from ..json_files import read_object
from .registry import (
    TOKENIZERS,
    WEIGHT_LAYOUTS,
    WEIGHTS,
    Layouts,
    WeightFile,
    bundled_dir,
    default_weights_dir,
    restore_advice,
    weight_file,
    weight_files,
)


def weights_folder(given: Path | None) -> Path:
    """Returns ``given``, or the default folder of weight files if it is None."""
    return given if given is not None else default_weights_dir()


def check_weights_dir(weights_dir: Path, may_be_absent: bool = False) -> None:
    """Raises `WeightsError` if ``weights_dir`` is a file or, unless it ``may_be_absent``, does not exist."""
    if weights_dir.is_file():
        raise WeightsError(f"{weights_dir}: this is a file; give the folder that holds the weight files")
    if not may_be_absent and not weights_dir.is_dir():
        raise WeightsError(
            f"{weights_dir}: no such folder; check --weights and THINKSOUND_WEIGHTS, "
            "or run `thinksound weights download`, which makes it"
        )


def missing(weights_dir: Path, keys: Iterable[str]) -> list[WeightFile]:
    """Returns the weights of ``keys`` that have neither a published nor a converted file.

    Raises:
        WeightsError: ``weights_dir`` is a file.
    """
    check_weights_dir(weights_dir, may_be_absent=True)
    files = [weight_file(key) for key in keys]
    return [
        file
        for file in files
        if not is_complete(file, published_path(weights_dir, file))
        and not is_complete(file, weights_dir / file.converted_path)
    ]


_DOWNLOAD = "run `thinksound weights download` (with --preset and --weights as here)"


def describe_missing(weights_dir: Path, files: Iterable[WeightFile], remedy: str = _DOWNLOAD) -> str:
    """Returns the message that says which files to put where; ``remedy`` names the command for it."""
    files = list(files)
    where = f"{weights_dir}" if weights_dir.is_dir() else f"{weights_dir} (no such folder)"
    lines = [f"weights are missing in {where}:"]
    bundled = [file for file in files if file.bundled]
    for file in files:
        if file.bundled:
            lines.append(f"  {file.path}: comes with this project")
        elif file.is_folder:
            absent = absent_parts(file, weights_dir / file.path)
            lines.append(
                f"  {file.path}/: {', '.join(absent)}, from {file.repository} on the Hugging Face hub"
            )
        else:
            lines.append(f"  {file.path}, from {file.repository} on the Hugging Face hub")
    if bundled:
        here = bundled_dir()
        whole = all(is_complete(file, here / file.path) for file in bundled)
        lines.append(
            "to use what comes with this project, leave out --weights and THINKSOUND_WEIGHTS, or copy "
            f"it from {here}"
            if whole
            else f"what comes with this project is not complete in {here}; {restore_advice(here)}"
        )
    if len(bundled) < len(files):
        lines.append(f"{remedy}, or put them there by hand under these names")
    return "\n".join(lines)


def published_path(weights_dir: Path, file: WeightFile) -> Path:
    """Returns the path where ``file`` is, or belongs.

    Bundled files are also looked up in `bundled_dir`, unless the user chose another folder for them: by
    ``--weights``, or by a ``THINKSOUND_WEIGHTS`` that does not exist or has bundled files of its own. A
    folder that the user chose is used or refused, never replaced.
    """
    path = weights_dir / file.path
    if not file.bundled or path.exists() or weights_dir != default_weights_dir():
        return path
    bundle = weights_dir / PurePosixPath(file.path).parts[0]
    if os.environ.get("THINKSOUND_WEIGHTS") and (bundle.exists() or not weights_dir.is_dir()):
        return path
    return bundled_dir() / file.path


def is_complete(file: WeightFile, path: Path) -> bool:
    """Whether all parts of ``file`` are at ``path``, or its values are drawn."""
    try:
        return not absent_parts(file, path) if file.is_folder else path.is_file() or is_drawn(file, path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def is_drawn(file: WeightFile, path: Path) -> bool:
    """Whether the values of ``file`` are drawn, because they may be and there is no file at ``path``."""
    own = PurePosixPath(file.path).parts  # a converted copy has another path
    return file.is_random and path.parts[-len(own) :] == own and not path.exists()


def absent_parts(file: WeightFile, folder: Path) -> list[str]:
    """Returns the file names that the Hugging Face folder of ``file`` lacks, for messages."""
    names = _names(folder)
    absent = absent_names(file, names)
    weights = weight_files(names, file.layouts)
    if weights and weights[0].endswith(".index.json"):
        absent += sorted(shards_of(folder / weights[0]) - names)
    return absent


def absent_names(file: WeightFile, names: set[str]) -> list[str]:
    """Returns the file names that a Hugging Face folder with ``names`` lacks, apart from shards."""
    absent = [] if file.description in names else [file.description]
    if not weight_files(names, file.layouts):
        whole = [first for first, shard in file.layouts if shard is None]
        shards = ", or either in shards with their index" if len(whole) < len(file.layouts) else ""
        absent.append(" or ".join(whole) + shards)
    if file.has_tokenizer and not any(names.issuperset(tokenizer) for tokenizer in TOKENIZERS):
        absent.append("its tokenizer (" + " or ".join("+".join(parts) for parts in TOKENIZERS) + ")")
    return absent


def shards_of(index: Path) -> set[str]:
    """Returns the file names in an index of sharded weights.

    Raises:
        WeightsError: the file is not such an index, or it names anything but its shards.
    """
    shard = dict(WEIGHT_LAYOUTS)[index.name]
    try:
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("no weight_map of file names")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{index}: not an index of weights ({error}); download it again") from error
    for name in sorted(set(names.values())):
        if shard is None or not shard.fullmatch(name):
            raise WeightsError(
                f"{index}: refers to {name[:100]!r}, which is no shard of it; download it again"
            )
    return set(names.values())


def files_of(file: WeightFile, path: Path) -> list[Path]:
    """Returns the files that are read to load ``file`` from ``path``; none if its values are drawn."""
    if is_drawn(file, path):
        return []
    return [path / name for name in file.wanted(_names(path))] if file.is_folder else [path]


def weight_paths(path: Path, layouts: Layouts = WEIGHT_LAYOUTS) -> list[Path]:
    """Returns the files with tensors: ``path`` itself, or the weight files in the folder at ``path``."""
    if not path.is_dir():
        return [path]
    return [path / name for name in weight_files(_names(path), layouts) if not name.endswith(".index.json")]


def single_file(file: WeightFile, converted: Path) -> Path:
    """Returns the safetensors file of a converted copy, which may be a folder."""
    return converted / file.written if converted.is_dir() else converted


def present_files(weights_dir: Path) -> list[Path]:
    """Returns all published, converted and bundled files from which complete weights can be loaded.

    Raises:
        WeightsError: there is none.
    """
    check_weights_dir(weights_dir, may_be_absent=True)  # the bundled files may be elsewhere
    paths: list[Path] = []
    for file in WEIGHTS.values():
        for path in (published_path(weights_dir, file), weights_dir / file.converted_path):
            if is_complete(file, path):
                paths += files_of(file, path)
    if not paths:
        check_weights_dir(weights_dir)
        raise WeightsError(f"{weights_dir}: holds no weight files; check --weights and THINKSOUND_WEIGHTS")
    return list(dict.fromkeys(paths))  # Synchformer's file serves two networks


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata in the header of a safetensors file; raises `WeightsError` if it is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] | None = file.metadata()
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged ({error}); convert it again") from error
    return metadata or {}


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else set()
