"""Download of weights from the Hugging Face hub: resumable, and verified before a file gets its name.

Files in the cache of huggingface_hub are linked, not downloaded (`cache`). For every other file the hub
announces size and hash before the download starts (`hub`). A file is downloaded to
``.download/<hash>.partial`` in the weights folder, also across restarts of the process, then hashed and moved
into place (`transfer`). huggingface_hub's settings apply: ``HF_ENDPOINT`` (mirror), ``HF_TOKEN``,
``HF_HUB_OFFLINE``, ``HF_HUB_CACHE``, proxies. Its ``hf_hub_download`` is not used: it restarts a file from
zero in each process, which hurts at 11 GB, and it does not verify small files.
"""

from __future__ import annotations

import errno
import functools
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import WeightsError
from ..progress import Progress
from . import cache, checksums, hub
from .checksums import file_sha256
from .hub import WeakFileLock, constants
from .locate import describe_missing, missing
from .registry import WeightFile
from .transfer import Transfer, content_hash, is_intact, transfer

logger = logging.getLogger(__name__)

_STAGING = ".download"
_ATTEMPTS = 10  # to lock a folder that another process may be removing
_NOT_HERE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


def download(weights_dir: Path, keys: Iterable[str], progress: Progress | None = None) -> list[Path]:
    """Download the missing files of ``keys`` into ``weights_dir`` and return the new ones.

    Args:
        weights_dir: the folder of weight files.
        keys: of weights in `registry`.
        progress: called in the calling thread as ``progress(file, bytes done, bytes in all)`` while files
            are downloaded or hashed; several files are downloaded at once.

    Raises:
        WeightsError: the network is off and the cache of huggingface_hub lacks files (the message says which
            files to put where); a repository, revision or file does not exist, or access is denied; the disk
            is full; the server is not a hub; the connection breaks or stalls (the next call resumes); the
            content is not what the hub announced (it is deleted).
    """
    keys = list(keys)
    files = missing(weights_dir, keys)
    bundled = [file for file in files if file.bundled]
    if bundled:
        raise WeightsError(describe_missing(weights_dir, bundled))
    if not files:
        return []
    offline = constants.is_offline_mode()
    if offline and not any(cache.cached_files(file) for file in files):
        raise WeightsError(f"HF_HUB_OFFLINE is set, and {describe_missing(weights_dir, files)}")
    with _in_users_words(weights_dir), _alone(weights_dir / _STAGING) as staging:
        new = []
        for file in missing(weights_dir, keys):
            # With a network, a snapshot of another revision is compared with what the hub announces.
            cached = cache.cached_files(file, exact=not offline)
            new += _from_cache(weights_dir, staging, file, cached, progress)
        files = missing(weights_dir, keys)
        if offline and files:
            raise WeightsError(f"HF_HUB_OFFLINE is set, and {describe_missing(weights_dir, files)}")
        new += _from_hub(weights_dir, staging, files, progress)
        if files := missing(weights_dir, keys):
            raise WeightsError(
                f"{constants.ENDPOINT} has not all of it: {describe_missing(weights_dir, files)}"
            )
        shutil.rmtree(staging, ignore_errors=True)
    return new


@contextmanager
def _alone(staging: Path) -> Iterator[Path]:
    """Lock the folder of partial files against other processes."""
    with ExitStack() as stack:
        for attempt in range(_ATTEMPTS):
            staging.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(WeakFileLock(staging / "lock"))
                break
            except FileNotFoundError:  # another process finished and removed the folder
                if attempt == _ATTEMPTS - 1:
                    raise
        staging.mkdir(parents=True, exist_ok=True)
        yield staging


def _from_cache(
    weights_dir: Path, staging: Path, file: WeightFile, found: dict[str, Path], progress: Progress | None
) -> list[Path]:
    """Link ``found``, the cached parts of ``file`` by name, if all are intact; returns the new files."""
    targets = {name: _target(weights_dir, file, name) for name in found}
    absent = [name for name in found if not targets[name].exists()]
    hashes = {}
    for name in absent:
        path, label = found[name], targets[name].relative_to(weights_dir).as_posix()
        hashes[name] = file_sha256(path, functools.partial(progress, label) if progress else None)
        known = cache.hash_in_name(path)
        if known is not None and known != hashes[name] and known != content_hash(path, known):
            logger.warning("%s: damaged in the cache of huggingface_hub, not used", path)
            return []
    for name in absent:
        cache.link(found[name], targets[name], staging / "link")
        _record(weights_dir, file, name, hashes[name], found[name])
    return [targets[name] for name in absent]


def _record(weights_dir: Path, file: WeightFile, name: str, sha256: str, source: object) -> None:
    """Record the hash of a new file; warn if it differs from the published hash."""
    target = _target(weights_dir, file, name)
    checksums.record_sha256(weights_dir, target, sha256)
    logger.info("%s: from %s", target, source)
    published = file.sha256.get(name, sha256)
    if published != sha256:
        logger.warning(
            "%s from %s is not the file that %s published (sha256 %s…, not %s…)",
            name,
            source,
            file.repository,
            sha256[:16],
            published[:16],
        )


def _target(weights_dir: Path, file: WeightFile, name: str) -> Path:
    return weights_dir / file.path / name if file.is_folder else weights_dir / file.path


def _from_hub(
    weights_dir: Path, staging: Path, files: list[WeightFile], progress: Progress | None
) -> list[Path]:
    if not files:
        return []
    hub.check_endpoint()
    new: list[Path] = []
    transfers: dict[Path, tuple[WeightFile, Transfer]] = {}
    for file in files:
        for remote in _announced(file):
            target = _target(weights_dir, file, remote.name)
            if target in transfers or (target.is_file() and is_intact(target, remote)):
                continue
            cached = cache.cached_content(remote)
            if cached is not None and is_intact(cached, remote):
                cache.link(cached, target, staging / "link")
                _record(weights_dir, file, remote.name, remote.sha256 or file_sha256(target), cached)
                new.append(target)
                continue
            # Named by hash, so that versions never mix; files of equal content get a number each.
            same = sum(each.remote.content_id == remote.content_id for _, each in transfers.values())
            partial = staging / f"{remote.content_id}{f'.{same}' if same else ''}.partial"
            label = target.relative_to(weights_dir).as_posix()  # both text encoders have a config.json
            transfers[target] = (file, Transfer(remote, partial, target, label))
    _check_space(staging, [each for _, each in transfers.values()])

    def finish(each: Transfer) -> None:
        each.target.parent.mkdir(parents=True, exist_ok=True)
        each.partial.replace(each.target)
        sha256 = each.remote.sha256 or file_sha256(each.target)
        _record(weights_dir, transfers[each.target][0], each.remote.name, sha256, constants.ENDPOINT)

    transfer([each for _, each in transfers.values()], finish, progress)
    return [*new, *transfers]


def _announced(file: WeightFile) -> list[hub.Remote]:
    try:
        return hub.announced(file)
    except hub.UnknownRevisionError as error:  # a mirror's copy of a repository may have its own commits
        try:
            remotes = hub.announced(replace(file, revision="main"))
        except WeightsError:
            raise error from None
        logger.warning("%s; taken from its main instead", str(error).partition(";")[0])
        return remotes
    except WeightsError as error:
        if cache.cached_files(file):
            raise WeightsError(
                f"{error}; the cache of huggingface_hub holds another revision: HF_HUB_OFFLINE=1 uses it"
            ) from error
        raise


def _check_space(staging: Path, transfers: list[Transfer]) -> None:
    arrived = sum(each.partial.stat().st_size for each in transfers if each.partial.exists())
    needed = sum(each.remote.size for each in transfers) - arrived
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise WeightsError(
            f"{staging.parent}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
            "make room or choose another folder with --weights or THINKSOUND_WEIGHTS"
        )


@contextmanager
def _in_users_words(weights_dir: Path) -> Iterator[None]:
    """Turn errors of the disk into `WeightsError`; `hub` does so for errors of the network."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or weights_dir
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"{where}: the disk is full; make room and run the same command again"
            ) from error
        if error.errno in _NOT_HERE:
            raise WeightsError(
                f"{where}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        raise WeightsError(f"{where}: {error.strerror or error}; run the same command again") from error
