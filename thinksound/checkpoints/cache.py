"""Reuse of files in the cache of huggingface_hub (``HF_HUB_CACHE``, ``HF_HOME``).

A cached file is linked into the weights folder: by a hard link, or by a symbolic link to another disk. If
neither is possible, the file is copied. The cache names a file by its hash, so no network is needed to
verify it.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ..errors import WeightsError
from .hub import Remote, constants, repo_folder_name, try_to_load_from_cache
from .locate import absent_parts
from .registry import WeightFile

logger = logging.getLogger(__name__)


def cached_files(file: WeightFile, exact: bool = False) -> dict[str, Path]:
    """Returns file name -> path in the cache for every part of ``file``; empty if a part is missing.

    Looks in the snapshot of the wanted revision, then, unless ``exact``, in that of ``main``.
    """
    for revision in [file.revision] if exact else dict.fromkeys((file.revision, "main")):
        name = file.description if file.is_folder else file.remote_path
        first = _cached(str(file.repository), name, revision)
        if first is None:
            continue
        if not file.is_folder:
            return {file.remote_path: first}
        try:
            if not absent_parts(file, first.parent):
                names = {entry.name for entry in first.parent.iterdir() if entry.is_file()}
                return {name: first.parent / name for name in file.wanted(names)}
        except (WeightsError, OSError) as error:  # the folder or its shard index cannot be read
            logger.info("%s: not used (%s)", first.parent, error)
    return {}


def cached_content(remote: Remote) -> Path | None:
    """Returns a cached file with the announced hash or name, and size; its content is not checked."""
    folder = repo_folder_name(repo_id=remote.repository, repo_type="model")
    for path in (
        Path(constants.HF_HUB_CACHE) / folder / "blobs" / remote.content_id,
        _cached(remote.repository, remote.name, remote.commit),
        _cached(remote.repository, remote.name, "main"),
    ):
        try:
            if path is not None and path.is_file() and path.stat().st_size == remote.size:
                return path
        except OSError as error:
            logger.info("%s: not used (%s)", path, error.strerror)
    return None


def hash_in_name(path: Path) -> str | None:
    """Returns the hash that the cache recorded for a file; None if the cache holds copies, not links."""
    blob = path.resolve()
    digits = set("0123456789abcdef")
    known = blob.parent.name == "blobs" and len(blob.name) in (40, 64) and set(blob.name) <= digits
    return blob.name if known else None


def link(source: Path, target: Path, temporary: Path) -> None:
    """Link ``source`` to ``target``; ``temporary`` is an unused path on the disk of ``target``."""
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        try:
            temporary.symlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)
    temporary.replace(target)


def _cached(repository: str, name: str, revision: str) -> Path | None:
    try:
        found = try_to_load_from_cache(repository, name, revision=revision)
    except (OSError, ValueError) as error:
        logger.info("%s: the cache cannot be read (%s)", constants.HF_HUB_CACHE, error)
        return None
    return Path(found) if isinstance(found, str) else None
