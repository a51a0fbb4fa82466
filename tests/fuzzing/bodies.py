"""Odd requests to the real server, and good ones in between, which must go on working."""

from __future__ import annotations

import base64
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.server import Server, data_url

from fuzzing.mutations import BYTES, mutate_json, odd_value
from fuzzing.pool import Ending

_INPUTS = ("caption", "cot", "cfg_scale", "num_inference_steps", "seed", "duration", "video")


class Requests:
    """One server on the tiny preset."""

    def __init__(self, folder: Path, film: Path) -> None:
        self._server = Server(folder, THINKSOUND_PRESET="tiny", MALLOC_ARENA_MAX="1")
        self._server.wait_for("READY", limit_s=300)
        self._good = {"video": data_url(film), "num_inference_steps": 10, "seed": 1, "caption": "A knock"}
        self._film = film.read_bytes()
        self._output = self._predict_good()
        self._log_seen = 0

    def run(self, rng: random.Random, check: bool) -> Ending:
        """Send one odd request; with ``check``, a good one after it."""
        body, headers = self._odd(rng)
        shown = body[:300].decode("utf-8", "backslashreplace")
        try:
            status, answer = self._send(body, headers)
        except (OSError, ValueError) as error:
            return Ending("hang" if isinstance(error, TimeoutError) else "crash", f"{error!r} to {shown}")
        log = self._server.log.read_text(errors="replace")
        new, self._log_seen = log[self._log_seen :], len(log)
        if "Traceback" in new or "this is a bug" in new or "Traceback" in answer:
            return Ending("traceback", f"{shown} gave {new[-1500:]}")
        if status >= 500:
            return Ending("traceback", f"{status} {answer[:500]} to {shown}")
        if check:
            try:
                if self._predict_good() != self._output:
                    return Ending("wrong result", f"a good request gives another sound after {shown}")
            except AssertionError as error:
                return Ending("crash", f"a good request fails after {shown}: {str(error)[-1500:]}")
        succeeded = status == 200 and '"status":"succeeded"' in answer.replace(" ", "")
        return Ending("result" if succeeded else "error", f"{status} {answer[:200]}")

    def close(self) -> list[str]:
        """End the server; returns the files that it left, but for the last output."""
        left = [name for name in self._server.leftovers if name != "thinksound.mp4"]
        self._server.close()
        return left

    def _predict_good(self) -> str:
        answer = self._server.predict(**self._good)
        assert answer["status"] == "succeeded", answer
        return str(answer["output"])

    def _odd(self, rng: random.Random) -> tuple[bytes, dict[str, str]]:
        inputs: dict[str, Any] = {**self._good, "num_inference_steps": 10}
        headers = {"Content-Type": "application/json"}
        way = rng.randrange(8)
        if way == 0:
            damaged = rng.choice(BYTES)(self._film, rng)
            inputs["video"] = "data:video/mp4;base64," + base64.b64encode(damaged).decode()
        elif way == 1:
            inputs["video"] = rng.choice(_VIDEOS)
        elif way == 2:
            headers = rng.choice(_HEADERS)
        elif way == 3:
            return rng.choice(BYTES)(json.dumps({"input": inputs}).encode(), rng), headers
        elif way == 4:
            return mutate_json(json.dumps({"input": inputs}).encode(), rng), headers
        else:
            for name in rng.sample(_INPUTS, rng.randint(1, 3)):
                inputs[name] = odd_value(rng)
            if rng.random() < 0.2:
                del inputs[rng.choice(list(inputs))]
        try:
            return json.dumps({"input": inputs}).encode(), headers
        except RecursionError:
            return b'{"input":' * 20_000, headers

    def _send(self, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        """By hand: a library would refuse to send some of it."""
        self._server.wait_for("READY", limit_s=120)
        lines = {"Host": "127.0.0.1", "Content-Length": str(len(body)), "Connection": "close", **headers}
        head = "POST /predictions HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=120) as connection:
            connection.sendall(head.encode("latin-1") + b"\r\n" + body)
            answer = b"".join(_pieces(connection))
        status, _, content = answer.partition(b"\r\n")
        if not status.startswith(b"HTTP/1.1 "):
            raise ValueError(f"no HTTP answer: {answer[:200]!r}")
        return int(status.split()[1]), content.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")


_VIDEOS = (
    "",
    "data:",
    "data:video/mp4;base64,",
    "data:video/mp4;base64,%%%",
    "data:video/mp4,notbase64",
    "data:text/html;base64,PGh0bWw+",
    "data:;base64,AAAA",
    "data:video/../../x;base64,AAAA",
    "http://127.0.0.1:1/x.mp4",
    "http://[::1/x",
    "HTTP://127.0.0.1:1/",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1/x",
    "gopher://x",
    "/etc/passwd",
    "../../etc/passwd",
    "-",
    "\x00",
    "http://" + "a" * 5000,
    "https://localhost:99999/",
)
_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    {"Content-Type": "application/json", "Prefer": "nothing, of=this;kind"},
    {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    {"Content-Type": "application/json", "X-Long": "x" * 5000},
    {"Content-Type": "application/json", "traceparent": "zz-0"},
)


def _pieces(connection: socket.socket) -> Iterator[bytes]:
    while piece := connection.recv(1 << 16):
        yield piece
