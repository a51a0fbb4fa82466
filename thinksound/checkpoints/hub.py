"""Requests to a Hugging Face hub or a mirror; every answer is checked before it is used.

Names, sizes and hashes are checked field by field, because a name becomes a path, a size becomes disk space
and a hash becomes the name of a partial file. huggingface_hub provides the HTTP client with its settings
(``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_DOWNLOAD_TIMEOUT``, proxies). Its ``model_info`` is not used: it
raises arbitrary exceptions if the server is not a hub.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Never, TypeVar
from urllib.parse import quote, urlsplit

from ..errors import WeightsError
from .locate import absent_names
from .registry import WeightFile, weight_files

# Only this module imports huggingface_hub; the others import its names from here.
try:
    from huggingface_hub import constants as constants
    from huggingface_hub import get_token, hf_hub_url
    from huggingface_hub import try_to_load_from_cache as try_to_load_from_cache
    from huggingface_hub.errors import HTTPError as HTTPError
    from huggingface_hub.file_download import repo_folder_name as repo_folder_name
    from huggingface_hub.utils import WeakFileLock as WeakFileLock
    from huggingface_hub.utils import get_session as get_session
    from huggingface_hub.utils import hf_raise_for_status as hf_raise_for_status
    from huggingface_hub.utils import parse_xet_file_data_from_response as parse_xet_file_data_from_response
except ValueError as error:  # raised while it reads its environment, as for HF_ENDPOINT=http://[::1
    raise WeightsError(
        f"the HF_ENDPOINT or another HF_ variable of the environment cannot be used ({error}); unset it"
    ) from error

_MAX_DESCRIPTION = 16 << 20  # bytes; the description of a repository with 1,000 files has 0.3 MB
_MAX_SMALL_FILE = 64 << 20  # bytes of a configuration or tokenizer file; the largest in use has 2.4 MB
_MAX_FILES = 100  # in one folder
_ROUNDED = 1.1  # largest announced size over the registry's rounded size

_HEX40, _HEX64 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Remote:
    """One file on the hub, as announced."""

    repository: str
    commit: str
    name: str
    size: int
    sha256: str | None  # for large files
    blob_id: str  # git's hash, which verifies small files

    @property
    def content_id(self) -> str:
        """40 or 64 hexadecimal digits."""
        return self.sha256 or self.blob_id


class UnknownRevisionError(WeightsError):
    """The hub has the repository, but not the wanted revision."""


class TransientError(Exception):
    """The transfer failed, and a retry may succeed."""


def stall_s() -> float:
    """Seconds without progress after which a transfer fails: three times huggingface_hub's time-out."""
    return 3.0 * constants.HF_HUB_DOWNLOAD_TIMEOUT


def request_headers() -> dict[str, str]:
    """Headers of every request: the user agent and, if there is one, the token.

    huggingface_hub's ``build_hf_headers`` is not used: it may first fetch a list from the endpoint, without a
    limit on its size or time.
    """
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"User-Agent": "thinksound"} | ({"Authorization": f"Bearer {token}"} if token else {})


def check_endpoint() -> None:
    """Raises `WeightsError` if ``HF_ENDPOINT``, ``HF_TOKEN`` or the proxy settings cannot be used."""
    endpoint = constants.ENDPOINT
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
        usable = parts.scheme in ("http", "https") and bool(host) and not re.search(r"[\s\0-\x20]", endpoint)
        (host or "").encode("idna")
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise WeightsError(
            f"HF_ENDPOINT={shown(endpoint)!r} is not the address of a hub; "
            "give one like https://huggingface.co, or unset it"
        )
    token = request_headers().get("Authorization", "")
    if not (token.isascii() and token.isprintable()):
        raise WeightsError("HF_TOKEN holds characters that no token has; set it anew or unset it")
    try:
        get_session()
    except Exception as error:  # httpx's errors for a bad proxy or certificate file
        raise WeightsError(
            f"no connection to {endpoint} can be made ({shown(error)}); "
            "check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
        ) from error


def announced(file: WeightFile) -> list[Remote]:
    """Returns the files that make up ``file``, as the hub announces them.

    Raises:
        WeightsError: the connection fails, access is denied, the repository, revision or a file does not
            exist, the server is not a hub, or a name, size or hash is not valid.
    """
    repository = str(file.repository)
    document = _document(repository, file.revision)
    match document:
        case {"sha": str(commit), "siblings": list(siblings)} if _HEX40.fullmatch(commit):
            found = {_listed_name(sibling): sibling for sibling in siblings}
        case _:
            raise _not_a_hub("what it says of " + repository + " has no commit or no list of files")
    if file.is_folder:
        names = file.wanted(found)
        if absent := absent_names(file, set(found)):
            raise WeightsError(f"{repository} at {constants.ENDPOINT} has no {', '.join(absent)}")
        if len(names) > _MAX_FILES:
            raise _not_a_hub(f"it lists {len(names):,} weight files of {repository}")
    elif file.remote_path in found:
        names = [file.remote_path]
    else:
        raise WeightsError(
            f"{repository} at {constants.ENDPOINT} has no file {file.remote_path}; put it in place by hand"
        )
    remotes = [_remote(repository, commit, name, found[name]) for name in names]
    weights = set(weight_files(names, file.layouts)) if file.is_folder else {file.remote_path}
    limits = {True: int(_ROUNDED * (file.size or 0)), False: _MAX_SMALL_FILE}
    for remote in remotes:
        _check_size(remote.name, remote.size, limits[remote.name in weights])
    _check_size(
        f"{repository} in all", sum(remote.size for remote in remotes), limits[True] + _MAX_SMALL_FILE
    )
    return remotes


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise WeightsError(
            f"{constants.ENDPOINT} announces {size:,} bytes for {what}, where at most {limit:,} are "
            "expected; use another mirror"
        )


def _listed_name(sibling: object) -> str:
    match sibling:
        case {"rfilename": str(name)}:
            pass
        case _:
            raise _not_a_hub("its list of files holds something else")
    parts = name.split("/")
    if (
        any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in parts)
        or "\\" in name
        or not name.isprintable()
        or ":" in parts[0]
    ):
        raise WeightsError(
            f"{constants.ENDPOINT} lists a file that cannot be stored safely, {shown(name)!r}; "
            "use another mirror"
        )
    return name


def _remote(repository: str, commit: str, name: str, sibling: dict[str, Any]) -> Remote:
    size, blob_id, lfs = sibling.get("size"), sibling.get("blobId"), sibling.get("lfs")
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
    if (
        type(size) is not int
        or size < 0
        or not (isinstance(blob_id, str) and _HEX40.fullmatch(blob_id))
        or not (lfs is None or (isinstance(sha256, str) and _HEX64.fullmatch(sha256)))
    ):
        raise WeightsError(f"{constants.ENDPOINT} does not tell size and hash of {name}; use another mirror")
    return Remote(repository, commit, name, size, sha256, blob_id)


def _document(repository: str, revision: str) -> object:
    """Returns the hub's JSON description of a repository, unchecked; gives up after `stall_s` seconds."""
    url = f"{constants.ENDPOINT}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"

    def fetch() -> tuple[bytes, str]:
        with _answer(url, {}, repository, revision) as response:
            content = bytearray()
            for piece in response.iter_raw():
                content += piece
                if len(content) > _MAX_DESCRIPTION:
                    raise _not_a_hub(f"its answer is longer than {_MAX_DESCRIPTION:,} bytes")
            return bytes(content), response.headers.get("Content-Type", "no type")

    try:
        content, kind = _within(stall_s(), fetch)
    except TransientError as error:
        raise WeightsError(
            f"{repository}: the connection to {constants.ENDPOINT} failed ({error})"
        ) from error
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError):
        start = content[:40].decode("utf-8", "replace")
        raise _not_a_hub(f"it sent {shown(kind)!r} that begins {shown(start)!r}") from None
    return document


def _within(seconds: float, work: Callable[[], _T]) -> _T:
    """Returns or raises what ``work`` does; raises `TransientError` if it takes longer than ``seconds``.

    The socket's time-out only ends a silent connection, not one that sends a byte now and then.
    """
    outcome: list[_T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TransientError(f"no complete answer in {seconds:.0f} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@contextmanager
def content(remote: Remote, start: int) -> Iterator[tuple[int, Any]]:
    """Yields ``(first, response)``: the stream of a file and the position of its first byte.

    ``first`` is ``start``, or 0 if the hub does not support ranges.

    Raises:
        TransientError: the connection failed or broke.
        WeightsError: the hub refuses, or sends another size or encoding than announced.
    """
    url = hf_hub_url(remote.repository, remote.name, revision=remote.commit)
    headers = {"Range": f"bytes={start}-"} if start else {}
    with _answer(url, headers, remote.repository, remote.name) as response:
        first = start if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        if response.status_code == 206:
            part = response.headers.get("Content-Range", "")
            if not re.fullmatch(rf"bytes {start}-{remote.size - 1}/({remote.size}|\*)", part.strip()):
                raise _other_content(remote, f"{shown(part)!r} instead of the bytes from {start:,} on")
        if length.isdecimal() and length.isascii() and int(length[:20]) != remote.size - first:
            kind = shown(response.headers.get("Content-Type", "no type"))
            raise _other_content(
                remote, f"{int(length[:20]):,} bytes of {kind!r} instead of {remote.size - first:,}"
            )
        yield first, response


def _other_content(remote: Remote, sent: str) -> WeightsError:
    return WeightsError(
        f"{remote.name}: {constants.ENDPOINT} sends {sent}, which is not what it announced; "
        "try again later or use another mirror"
    )


@contextmanager
def _answer(url: str, headers: dict[str, str], repository: str, what: str) -> Iterator[Any]:
    """Yields the streamed answer to one request; checks its status and turns errors into messages."""
    headers = request_headers() | {"Accept-Encoding": "identity"} | headers
    try:
        with get_session().stream(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            if response.status_code not in (200, 206):
                _refuse(response, repository, what)
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":  # a small compressed answer could unpack to any size
                raise _not_a_hub(
                    f"it sends {what} in the encoding {shown(encoding)!r}, which was not asked for"
                )
            yield response
    except HTTPError as error:
        raise TransientError(shown(str(error) or type(error).__name__)) from error


def _refuse(response: Any, repository: str, what: str) -> Never:
    hub, status, code = constants.ENDPOINT, response.status_code, response.headers.get("X-Error-Code")
    if code == "GatedRepo":
        raise WeightsError(
            f"{repository}: its owners ask for agreement; agree on {hub}/{repository}, then set HF_TOKEN"
        )
    if code == "RepoNotFound" or (status == 401 and code is None):
        raise WeightsError(
            f"{repository}: not found on {hub}, or not open to you; check HF_ENDPOINT and HF_TOKEN"
        )
    if code in ("RevisionNotFound", "EntryNotFound"):
        kind = UnknownRevisionError if code == "RevisionNotFound" else WeightsError
        raise kind(f"{repository}: {what} not found on {hub}; put it in place by hand")
    if status in (408, 425) or (status >= 500 and status != 507):
        raise TransientError(f"it answered {status}")
    advice = {401: "check HF_TOKEN", 403: "check HF_TOKEN", 404: "check HF_ENDPOINT"}
    what_to_do = advice.get(status, "try again later")
    raise WeightsError(f"{repository}: {hub} answered {status} for {what}; {what_to_do}")


def _not_a_hub(reason: str) -> WeightsError:
    return WeightsError(
        f"{constants.ENDPOINT} does not answer as a Hugging Face hub: {reason}; check HF_ENDPOINT, and "
        "whether this network asks for a login in the browser first"
    )


def shown(text: object) -> str:
    """Returns at most 200 characters of a text on one line, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))[:200].strip()
