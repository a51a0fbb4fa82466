"""Fetches the files of a request, each from a data, http or https URL, within limits.

Cog itself would fetch a URL before predict() runs, whatever its size, for any time, and from any address that
the server reaches; a file that does not fit on the disk would stay there. ``requests`` comes with Cog.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import mimetypes
import os
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from .. import __version__
from ..errors import InputError

_SILENCE_S = 10.0  # the transfer ends if the other server sends nothing for so long
_REDIRECTS = 5
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Limits:
    """Limits of one input."""

    megabytes: int = 2000  # three minutes at 90 Mbit/s
    seconds: float = 600.0
    private: bool = False  # whether URLs may name loopback, link-local and private addresses

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Limits:
        """Read THINKSOUND_MAX_INPUT_MB and THINKSOUND_PRIVATE_URLS.

        Raises:
            InputError: THINKSOUND_MAX_INPUT_MB is not a whole number of at least 1.
        """
        megabytes = environment.get("THINKSOUND_MAX_INPUT_MB") or str(cls.megabytes)
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", megabytes):
            raise InputError(
                f"THINKSOUND_MAX_INPUT_MB {megabytes!r}; give a whole number of megabytes, 1 or more"
            )
        private = environment.get("THINKSOUND_PRIVATE_URLS", "").lower() in ("1", "true", "yes")
        return cls(int(megabytes), private=private)


def fetch(url: object, folder: Path, limits: Limits, name: str = "video") -> Path:
    """Write the content of a URL to a file in ``folder`` and return its path.

    An asynchronous exception, such as Cog's cancellation, ends the transfer within a tenth of a second.

    Args:
        url: as it came in the request; the scheme may be in capitals.
        folder: the folder of the request.
        limits: the limits of this input.
        name: the name of the input, for messages.

    Raises:
        InputError: this is not a data, http or https URL; the address is not allowed or does not answer; the
            transfer breaks off or takes longer than the limit; the content is larger than the limit or than
            the free space on the disk.
    """
    scheme = url.strip().partition(":")[0].lower() if isinstance(url, str) else ""
    if not isinstance(url, str) or scheme not in ("data", "http", "https"):
        raise InputError(f"{name} {repr(url)[:100]} is no URL; give an http, https or data URL")
    try:
        return (_from_data if scheme == "data" else _from_web)(url.strip(), folder / name, limits)
    except InputError as error:  # the messages below begin with "video"
        raise InputError(f"{name}{str(error).removeprefix('video')}") from None
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(
                f"{name}: no room for it on the disk of the server's temporary folder; send a smaller file"
            ) from None
        raise


def _too_large(limits: Limits) -> InputError:
    return InputError(
        f"video: larger than the {limits.megabytes:,} MB that this server takes; send a smaller file"
    )


def _from_data(url: str, stem: Path, limits: Limits) -> Path:
    head, comma, text = url.partition(",")
    if not comma:
        raise InputError("video: a data URL without a comma; give data:video/mp4;base64,…")
    kind, *parameters = head[len("data:") :].lower().replace(" ", "").split(";")
    content = urllib.parse.unquote_to_bytes(text)
    if "base64" in parameters:
        content = b"".join(content.split()).rstrip(b"=")
        content += b"=" * (-len(content) % 4)  # padding may be left out
        try:
            content = base64.b64decode(content, altchars=b"-_", validate=True)  # takes both alphabets
        except ValueError as error:
            raise InputError(f"video: a damaged data URL ({error}); give data:video/mp4;base64,…") from None
    if len(content) > limits.megabytes * 1e6:
        raise _too_large(limits)
    path = stem.with_suffix(mimetypes.guess_extension(kind) or "")
    path.write_bytes(content)
    return path


def _from_web(url: str, stem: Path, limits: Limits) -> Path:
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError:  # an opening bracket without a closing one
        host = None
    if not host:
        raise InputError(f"video {url[:100]!r} names no host; give http://host/file.mp4")
    suffix = PurePosixPath(urllib.parse.unquote(parts.path)).suffix
    path = stem.with_suffix(suffix if re.fullmatch(r"[.][A-Za-z0-9]{1,8}", suffix) else "")
    transfer = _Transfer(url, path, limits)
    end = time.monotonic() + limits.seconds
    try:
        transfer.start()
        while transfer.is_alive() and time.monotonic() < end:
            transfer.join(0.1)  # Cog's cancellation arrives between two joins, not during a longer wait
        if transfer.is_alive():
            raise InputError(
                f"video: not complete after {limits.seconds:g} s ({transfer.done / 1e6:.1f} MB came); "
                "put the file on a faster server"
            )
    finally:
        transfer.abort()
    error = transfer.error
    # ValueError: the host name or a redirect is not valid.
    if isinstance(error, requests.RequestException | HTTPError | ValueError) and not isinstance(
        error, InputError
    ):
        raise InputError(f"video: {host} does not give it ({_reason(error)}); check the URL")
    if error is not None:
        raise error
    return path


def _reason(error: BaseException) -> str:
    """Return the cause of an error of requests, without the URL, which may hold a secret."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the answer is {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.TooManyRedirects):
        return f"more than {_REDIRECTS} redirects"
    if isinstance(error, requests.Timeout):
        return f"nothing came for {_SILENCE_S:g} s"
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return str(error)[:200]


class _Transfer(threading.Thread):
    """Fetches one file in a thread of its own, since nothing interrupts a thread that waits for bytes."""

    def __init__(self, url: str, path: Path, limits: Limits) -> None:
        super().__init__(daemon=True)
        self.url, self.path, self.limits = url, path, limits
        self.done = 0  # bytes
        self.error: BaseException | None = None
        self._sockets: list[socket.socket] = []

    def run(self) -> None:
        try:
            self._copy()
        except BaseException as error:  # raised again by the thread that waits
            self.error = error

    def abort(self) -> None:
        """End the transfer by closing its connections."""
        for connected in self._sockets:
            with suppress(OSError):  # not connected any more
                connected.shutdown(socket.SHUT_RDWR)

    def _copy(self) -> None:
        headers = {"User-Agent": os.environ.get("COG_USER_AGENT", f"thinksound/{__version__}")}
        with requests.Session() as session:
            session.max_redirects = _REDIRECTS
            adapter = _Adapter(self._sockets.append, self.limits.private)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            with session.get(self.url, headers=headers, stream=True, timeout=_SILENCE_S) as response:
                response.raise_for_status()
                if (response.raw.length_remaining or 0) > self.limits.megabytes * 1e6:
                    raise _too_large(self.limits)
                with self.path.open("wb") as file:
                    for chunk in response.iter_content(1 << 16):
                        self.done += len(chunk)
                        if self.done > self.limits.megabytes * 1e6:
                            raise _too_large(self.limits)
                        file.write(chunk)


class _Adapter(HTTPAdapter):
    """Makes connections that can be ended from outside, and only to public addresses unless ``private``.

    Every connection is checked, including those of redirects: before it is made, by the addresses of the host
    name, and afterwards, by the address it is connected to, because a second look-up of the name may give
    another address. If a proxy is set (HTTP_PROXY), it looks names up and decides; its connections are not
    checked.
    """

    def __init__(self, opened: Callable[[socket.socket], None], private: bool) -> None:
        class Checked(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                if not private:
                    found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
                    for *_, address in found:
                        _check_address(str(address[0]))
                connected = super()._new_conn()
                opened(connected)
                if not private:
                    try:
                        _check_address(connected.getpeername()[0])
                    except InputError:
                        connected.close()
                        raise
                return connected

        class CheckedTLS(Checked, HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                opened(self.sock)  # the TLS socket, which replaces the plain one

        self._pools = {
            "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": Checked}),
            "https": type("PoolTLS", (HTTPSConnectionPool,), {"ConnectionCls": CheckedTLS}),
        }
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, **keywords)
        self.poolmanager.pool_classes_by_scheme = self._pools


def _check_address(text: str) -> None:
    """Raise `InputError` if an address does not belong to the public internet."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _check_address(str(inner))
    if not address.is_global or address.is_multicast or getattr(address, "is_site_local", False):
        raise InputError(
            f"video: the URL leads to {address}, which is no public address; give a data URL, or start the "
            "server with THINKSOUND_PRIVATE_URLS=1"
        )
    return None
