"""Weights from the Hugging Face hub: resumed when cut, verified, and only then under their own name.

The hub tells the size and hash of every file before anything is fetched. A file grows under
``.download/<hash>.partial`` in the weights folder, across interruptions and restarts of the process, is
hashed, and is moved into place whole. huggingface_hub's own settings hold: ``HF_ENDPOINT`` (mirror),
``HF_TOKEN``, ``HF_HUB_OFFLINE``, proxies. Its ``hf_hub_download`` is not used because it starts a file
again from zero in each process, which hurts at 11 GB, and because it knows no hash of small files.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from ..errors import WeightsError
from . import checksums
from .checksums import Progress, file_sha256
from .locate import describe_missing, missing
from .registry import WeightFile

logger = logging.getLogger(__name__)

_STAGING = ".download"
_API_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class _Remote:
    """One file on the hub and where it goes."""

    repository: str
    commit: str
    name: str
    size: int
    sha256: str | None  # of large files
    blob_id: str  # git's hash, of small files
    target: Path

    @property
    def content_id(self) -> str:
        return self.sha256 or self.blob_id


def download(weights_dir: Path, keys: Iterable[str], progress: Progress | None = None) -> list[Path]:
    """Fetch what is missing of ``keys`` into ``weights_dir`` and return the new files.

    ``progress(file, bytes done, bytes in all)`` is called while a file arrives. Raises `WeightsError`,
    saying which files to put where, when the network is off; and for a repository, revision or file that
    does not exist, missing access, too little space, a cut connection (what arrived is kept and the next
    call goes on from there), and content that is not what the hub announced (which is deleted).
    """
    keys = list(keys)
    files = missing(weights_dir, keys)
    bundled = [file for file in files if file.bundled]
    if bundled:
        raise WeightsError(describe_missing(weights_dir, bundled))
    if not files:
        return []
    if constants.is_offline_mode():
        raise WeightsError(f"HF_HUB_OFFLINE is set, and {describe_missing(weights_dir, files)}")
    staging = weights_dir / _STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise WeightsError(f"{weights_dir}: {reason}; choose another folder") from error
    with WeakFileLock(staging / "lock"):  # another process may be filling the same folder
        remotes = [remote for file in missing(weights_dir, keys) for remote in _announced(weights_dir, file)]
        _check_space(staging, remotes)
        for remote in remotes:
            with _in_users_words(remote.repository, remote.name):
                _fetch(weights_dir, staging, remote, progress)
        shutil.rmtree(staging, ignore_errors=True)
    return [remote.target for remote in remotes]


def _announced(weights_dir: Path, file: WeightFile) -> list[_Remote]:
    """What the hub has of ``file`` and is not here yet."""
    repository = str(file.repository)
    with _in_users_words(repository, file.revision):
        info = HfApi().model_info(
            repository, revision=file.revision, files_metadata=True, timeout=_API_TIMEOUT_S
        )
    found = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = file.wanted(found) if file.is_folder else [file.path]
    remotes = []
    for name in names:
        if name not in found:
            raise WeightsError(
                f"{repository} at {constants.ENDPOINT} has no file {name}; put it into {weights_dir} by hand"
            )
        sibling = found[name]
        if info.sha is None or sibling.size is None or sibling.blob_id is None:
            raise WeightsError(
                f"{constants.ENDPOINT} does not tell size and hash of {name}; use another mirror"
            )
        target = weights_dir / file.path / name if file.is_folder else weights_dir / file.path
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        remote = _Remote(repository, info.sha, name, sibling.size, sha256, sibling.blob_id, target)
        if not (target.is_file() and target.stat().st_size == remote.size and _is_intact(target, remote)):
            remotes.append(remote)
    return remotes


def _check_space(staging: Path, remotes: list[_Remote]) -> None:
    partials = [_partial(staging, remote) for remote in remotes]
    arrived = sum(partial.stat().st_size for partial in partials if partial.exists())
    needed = sum(remote.size for remote in remotes) - arrived
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise WeightsError(
            f"{staging.parent}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
            "make room or choose another folder with --weights or THINKSOUND_WEIGHTS"
        )


def _fetch(weights_dir: Path, staging: Path, remote: _Remote, progress: Progress | None) -> None:
    partial = _partial(staging, remote)
    label = remote.target.relative_to(weights_dir).as_posix()  # both text encoders have a config.json
    with partial.open("ab") as stream:
        if stream.tell() > remote.size:
            stream.seek(0)
            stream.truncate()
        http_get(
            hf_hub_url(remote.repository, remote.name, revision=remote.commit),
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=remote.size,
            tqdm_class=cast(Any, functools.partial(_Bar, label, progress)),
        )
    if not _is_intact(partial, remote):
        partial.unlink()
        raise WeightsError(
            f"{remote.name}: what {constants.ENDPOINT} sent is not what it announced (hash "
            f"{remote.content_id[:16]}…); it was deleted, download it again"
        )
    remote.target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(remote.target)
    checksums.record_sha256(weights_dir, remote.target, remote.sha256 or file_sha256(remote.target))
    logger.info("%s: %d bytes from %s at %s", remote.target, remote.size, remote.repository, remote.commit)


def _partial(staging: Path, remote: _Remote) -> Path:
    return staging / f"{remote.content_id}.partial"  # named by content: another version never mixes in


def _is_intact(path: Path, remote: _Remote) -> bool:
    if remote.sha256 is not None:
        return file_sha256(path) == remote.sha256
    content = path.read_bytes()
    return (
        hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        == remote.blob_id
    )


@contextmanager
def _in_users_words(repository: str, what: str) -> Iterator[None]:
    """Turn the errors of the hub, the network and the disk into messages."""
    hub = constants.ENDPOINT
    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(
            f"{repository}: its owners ask for agreement; agree on {hub}/{repository}, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{repository}: not found on {hub}, or not open to you; check HF_ENDPOINT and HF_TOKEN"
        ) from error
    except (RevisionNotFoundError, RemoteEntryNotFoundError) as error:
        raise WeightsError(f"{repository}: {what} not found on {hub}; put it in place by hand") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "check HF_TOKEN" if status in (401, 403) else "try again later"
        raise WeightsError(f"{repository}: {hub} answered {status} for {what}; {advice}") from error
    except HTTPError as error:
        raise WeightsError(
            f"{what}: the connection to {hub} failed ({str(error) or type(error).__name__}); "
            "what arrived is kept, run the same command again to go on"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"{what}: the disk is full; make room and run the same command again"
            ) from error
        raise WeightsError(f"{what}: {error.strerror or error}; run the same command again") from error


class _Bar:
    """What huggingface_hub takes for a progress bar; passes the byte count on."""

    def __init__(self, label: str, report: Progress | None, total: int, initial: int, **_: object) -> None:
        self._label = label
        self._report = report
        self._total = total
        self._done = initial

    def update(self, count: int) -> None:
        self._done += count
        if self._report is not None:
            self._report(self._label, self._done, self._total)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
