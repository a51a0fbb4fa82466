"""A model hub on 127.0.0.1 with the endpoints that huggingface_hub uses, for real transfers in tests.

For each repository it serves the description with sizes and hashes, and ``resolve`` with the hub's headers:
small files directly, large ones by redirect to a blob path, both with ranges. Tests can set faults: a
connection that is cut after some bytes, content that differs from the announced hash, a required token, a
missing agreement, wrong sizes. ``requests`` records every request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

from thinksound.checkpoints.registry import WEIGHTS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".ckpt", ".pth", ".bin", ".safetensors", ".model", ".h5", ".msgpack")


@dataclass
class Request:
    method: str
    path: str
    byte_range: str | None
    authorization: str | None


@dataclass
class Hub:
    """``files``: repository -> file name -> content."""

    files: dict[str, dict[str, bytes]]
    cut_after: dict[str, list[int]] = field(default_factory=dict)  # file -> bytes sent in the first attempts
    sent_instead: dict[str, bytes] = field(default_factory=dict)  # file -> content other than announced
    announced_size: dict[str, int] = field(default_factory=dict)  # file -> wrong size
    token: str | None = None  # required; without it a repository is not found
    gated: bool = False
    revisions: tuple[str, ...] = tuple(file.revision for file in WEIGHTS.values())  # known besides main
    instead: Callable[[BaseHTTPRequestHandler], bool] | None = None  # answers a request, or returns False
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self) -> list[str]:
        """The names of the files whose content was requested, in order."""
        return [
            request.path.rpartition("/")[2]
            for request in self.requests
            if request.method == "GET" and "/resolve/" in request.path
        ]


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if self.state.instead is not None and self.state.instead(self):
            return None
        parts = path.strip("/").split("/")
        if parts[0] == "blobs":
            repository, name = "/".join(parts[1:3]), "/".join(parts[3:])
            return self._send_content(repository, name)
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repository, rest = "/".join(parts[:2]), parts[2:]
        if repository not in self.state.files or not self._may_enter():
            status = 404 if self._may_enter() else 401
            return self._refuse(status, "RepoNotFound")
        if self.state.gated:
            return self._refuse(403, "GatedRepo")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", COMMIT, *self.state.revisions):
            return self._refuse(404, "RevisionNotFound")
        if parts[0] == "api":
            return self._send(200, self._description(repository), {"Content-Type": "application/json"})
        name = "/".join(rest[2:])
        if name not in self.state.files[repository]:
            return self._refuse(404, "EntryNotFound")
        if not name.endswith(LARGE):
            return self._send_content(repository, name)
        content = self.state.files[repository][name]
        return self._send(
            302,
            b"",
            {
                "Location": f"/blobs/{repository}/{name}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(self._size(repository, name)),
            },
        )

    def _may_enter(self) -> bool:
        return self.state.token in (None, (self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _size(self, repository: str, name: str) -> int:
        return self.state.announced_size.get(name, len(self.state.files[repository][name]))

    def _description(self, repository: str) -> bytes:
        siblings = []
        for name, content in self.state.files[repository].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling: dict[str, object] = {
                "rfilename": name,
                "size": self._size(repository, name),
                "blobId": blob,
            }
            if name.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        return json.dumps({"id": repository, "sha": COMMIT, "private": False, "siblings": siblings}).encode()

    def _send_content(self, repository: str, name: str) -> None:
        content = self.state.sent_instead.get(name, self.state.files[repository][name])
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        status, start = 200, 0
        if byte_range := self.headers.get("Range"):
            start = int(byte_range.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.state.cut_after.get(name)
        limit = cuts.pop(0) if cuts and self.command == "GET" else None
        return self._send(status, content[start:], headers, limit)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str], limit: int | None = None) -> None:
        """Send ``body``, or its first ``limit`` bytes and then cut the connection."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # the client may close the connection first
                self.wfile.write(body[:limit])
        if limit is not None:
            self.close_connection = True
