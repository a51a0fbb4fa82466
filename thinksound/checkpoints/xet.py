"""Content by Xet, the chunked storage of Hugging Face, where hf_xet is installed and the hub offers it.

Its stream begins at any byte, so that a partial file is continued as by HTTP, and counted, bounded and hashed
as such. huggingface_hub's own ``xet_get`` begins each file anew. hf_xet tries a server that cannot be
reached without end, so the stream is read in a thread of its own and given up after a time-out; the rest
then comes by HTTP. ``HF_HUB_DISABLE_XET=1`` leaves it out.
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

# hf_xet raises what its Rust part maps to: RuntimeError, ValueError, OSError and kinds derived from them; the
# others are for an answer without the headers and for an hf_xet of another version.
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
    """Where the content of one file is found."""

    file_hash: str
    token_url: str  # on the hub: gives address and token of the storage


def offered(response: Any) -> Offer | None:
    """What the hub says of Xet on the way to a file; None where it says nothing or hf_xet is missing."""
    if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        return None
    for answer in (*response.history, response):
        found = parse_xet_file_data_from_response(answer)
        # The token for the hub goes along with the request, so it goes to the hub alone.
        if found is not None and found.refresh_route.startswith(constants.ENDPOINT + "/"):
            return Offer(found.file_hash, found.refresh_route)
    return None


def pieces(offer: Offer, size: int, start: int) -> Generator[bytes, None, None]:
    """The bytes of a file of ``size`` from ``start`` on; raises `TransientError` when they stop coming."""
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
