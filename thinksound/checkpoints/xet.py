"""Download by Xet, the chunked storage of Hugging Face, if hf_xet is installed and the hub offers it.

A stream can begin at any byte, so a partial file is continued, counted and hashed as with HTTP.
huggingface_hub's own ``xet_get`` restarts each file from zero. hf_xet retries an unreachable server without
end, so the stream is read in its own thread and abandoned after a time-out; the rest is downloaded by HTTP.
``HF_HUB_DISABLE_XET=1`` turns Xet off.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from queue import Empty, Full, Queue
from typing import Any

from .hub import (
    HTTPError,
    TransientError,
    constants,
    get_session,
    hf_raise_for_status,
    parse_xet_file_data_from_response,
    request_headers,
    shown,
)

# hf_xet's Rust part raises RuntimeError, ValueError, OSError and their subclasses. The others are raised for
# an answer without the headers, and for another version of hf_xet.
_FAILURES = (
    HTTPError,
    RuntimeError,
    ValueError,
    OSError,
    LookupError,
    ImportError,
    AttributeError,
    TypeError,
)


@dataclass(frozen=True)
class Offer:
    """Where to get the content of one file."""

    file_hash: str
    token_url: str  # on the hub; returns the storage's address and token


def offered(response: Any) -> Offer | None:
    """Returns the hub's offer in its answer for a file; None if there is none or hf_xet is not installed."""
    if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        return None
    for answer in (*response.history, response):
        found = parse_xet_file_data_from_response(answer)
        # The request carries the hub's token, so only an address on the hub is accepted.
        if found is not None and found.refresh_route.startswith(constants.ENDPOINT + "/"):
            return Offer(found.file_hash, found.refresh_route)
    return None


def pieces(offer: Offer, size: int, start: int) -> Generator[bytes, None, None]:
    """Yields the bytes of a file of ``size`` from ``start`` on; raises `TransientError` if they stop."""
    queue: Queue[bytes | BaseException | None] = Queue(maxsize=2)
    stop = threading.Event()
    threading.Thread(target=_pump, args=(offer, size, start, queue, stop), daemon=True).start()
    try:
        while True:
            try:
                piece = queue.get(timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            except Empty:
                raise TransientError("the Xet storage sends nothing") from None
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise TransientError(f"Xet storage: {shown(piece)}") from piece
            yield piece
    finally:
        stop.set()


def _pump(
    offer: Offer, size: int, start: int, queue: Queue[bytes | BaseException | None], stop: threading.Event
) -> None:
    def put(item: bytes | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(Full):
                queue.put(item, timeout=0.2)
                break

    try:
        from hf_xet import XetFileInfo, XetSession

        headers = request_headers()
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        answer = get_session().get(offer.token_url, headers=headers, timeout=timeout)
        hf_raise_for_status(answer)
        group = XetSession().new_download_stream_group(
            endpoint=answer.headers[constants.HUGGINGFACE_HEADER_X_XET_ENDPOINT],
            token=answer.headers[constants.HUGGINGFACE_HEADER_X_XET_ACCESS_TOKEN],
            token_expiry_unix_secs=int(answer.headers[constants.HUGGINGFACE_HEADER_X_XET_EXPIRATION]),
            token_refresh_url=offer.token_url,
            token_refresh_headers=headers,
        )
        for piece in group.download_stream(XetFileInfo(offer.file_hash, size), start=start):
            put(bytes(piece))
            if stop.is_set():
                group.abort()
                break
    except _FAILURES as error:
        put(error)
    else:
        put(None)
