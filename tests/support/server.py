"""Runs Cog's own HTTP server in a folder laid out like the image, and sends requests to it."""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import mimetypes
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import Any

from support.paths import ROOT

# Cog makes three folders here for each prediction, whatever TMPDIR says, and does not remove them.
COG_FOLDERS = Path("/tmp/coglet/predictions")

_TYPES = {
    "Path": {"type": "string", "format": "uri"},
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
}
_KEYWORDS = {"default": "default", "description": "description", "ge": "minimum", "le": "maximum"}


def input_schema(source: str, name: str = "Predictor") -> dict[str, Any]:
    """The inputs of the predictor ``name`` as Cog's build reads them: from the text alone, literals only."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    (predictor,) = [node for node in classes if node.name == name]
    (predict,) = [
        node for node in predictor.body if isinstance(node, ast.FunctionDef) and node.name == "predict"
    ]
    arguments = predict.args.args[1:]
    properties = {}
    for order, (argument, call) in enumerate(zip(arguments, predict.args.defaults, strict=True)):
        assert argument.annotation is not None, f"{argument.arg} has no annotation"
        assert isinstance(call, ast.Call), f"{argument.arg} is not described by Input(...)"
        assert ast.unparse(call.func) == "Input", f"{argument.arg} is not described by Input(...)"
        assert not call.args, f"Cog reads keywords alone, not the first argument of {argument.arg}"
        annotation = ast.unparse(argument.annotation)
        properties[argument.arg] = {
            "x-order": order,
            "title": argument.arg.replace("_", " ").title(),
            **_TYPES[annotation.removesuffix(" | None")],
            **({"nullable": True} if annotation.endswith(" | None") else {}),
            **{_KEYWORDS[str(each.arg)]: _literal(source, each.value) for each in call.keywords},
        }
    required = [name for name, each in properties.items() if "default" not in each]
    return {"title": "Input", "type": "object", "required": required, "properties": properties}


def _literal(source: str, node: ast.expr) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(source, node.operand)
    assert isinstance(node, ast.Constant), f"{ast.unparse(node)} is not a literal"
    if isinstance(node.value, str):
        text = ast.get_source_segment(source, node)
        assert text == f'"{node.value}"', f"{text} is not one plain string"  # Cog only strips the quotes
    return node.value


def image_files(root: Path) -> list[Path]:
    """Return the files that .dockerignore lets into the image; as in Docker, the last matching line wins."""
    lines = (root / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    def matches(path: PurePath, pattern: str) -> bool:
        anchored = not pattern.startswith("**/")
        return path.match(pattern) and (not anchored or len(path.parts) == len(PurePath(pattern).parts))

    def kept(path: PurePath) -> bool:
        result = True
        for rule in rules:
            if any(matches(each, rule.removeprefix("!")) for each in (path, *path.parents[:-1])):
                result = rule.startswith("!")
        return result

    found = []
    for top in root.iterdir():
        if kept(top.relative_to(root)):
            found += [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
    return sorted(path for path in found if kept(path.relative_to(root)))


def lay_out_image(folder: Path, predictor: str = "Predictor") -> Path:
    """Make ``folder`` what /src is in the image, with the schema that Cog's build adds for a predictor."""
    for path in image_files(ROOT):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_relative_to(ROOT / "weights"):
            target.symlink_to(path)
        else:
            shutil.copyfile(path, target)
    output = {"title": "Output", "type": "string", "format": "uri"}
    inputs = input_schema((ROOT / "predict.py").read_text(), predictor)
    schemas = {"Input": inputs, "Output": output}
    schema = {"openapi": "3.0.2", "info": {"title": "Cog"}, "paths": {}, "components": {"schemas": schemas}}
    (folder / ".cog").mkdir()
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(schema))
    return folder


def data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


class Server:
    """One server process with its own temporary folder and log.

    ``predict`` is what cog.yaml says of the predictor; more ``environment`` and ``arguments`` of the server.
    """

    def __init__(
        self, folder: Path, *arguments: str, predict: str = "predict.py:Predictor", **environment: str
    ) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.log = folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = {
            "COG_PREDICT_TYPE_STUB": predict,
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1",
            # The server starts its worker with the first "python" on the path.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PORT": str(self.port),
            "THINKSOUND_PRIVATE_URLS": "1",  # the videos of the tests lie on this machine
            "TMPDIR": str(self.temporary),
            **environment,
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1", *arguments],
                cwd=lay_out_image(folder / "src", predict.partition(":")[2]),
                env=os.environ | settings,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.states: list[str] = []  # statuses of the health check, each different from the one before
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send a request; return status and decoded answer. ``body`` is sent as JSON unless it is bytes."""
        payload = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            payload,
            {"Content-Type": "application/json", **headers},
            method=method,
        )
        try:
            with self._open(request, timeout=60) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        answer = json.loads(content) if content[:1] in (b"{", b"[") else {"text": content.decode()}
        return status, answer

    def wait_for(self, *states: str, limit_s: float = 180) -> dict[str, Any]:
        """Wait until the status of the health check is one of ``states``; return its answer."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                health = self.request("GET", "/health-check")[1]
                if self.states[-1:] != [health["status"]]:
                    self.states.append(health["status"])
                if health["status"] in states:
                    return health
            time.sleep(0.05)
        raise AssertionError(f"never became {states}, but {self.states}:\n{self.log.read_text()}")

    def predict(self, **inputs: Any) -> dict[str, Any]:
        """Send a prediction that the server must accept; return its answer, succeeded or failed."""
        self.wait_for("READY")
        status, answer = self.request("POST", "/predictions", {"input": inputs})
        assert status == 200, answer
        return answer

    @property
    def worker(self) -> int:
        """Process id of the worker that holds the networks."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        (pid,) = " ".join((thread / "children").read_text() for thread in threads).split()
        return int(pid)

    @property
    def leftovers(self) -> list[str]:
        """Names of the files in the temporary folder."""
        return [path.name for path in self.temporary.rglob("*") if path.is_file()]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)
        for prediction in set(re.findall(r'"prediction_id":"(\w+)"', self.log.read_text())):
            shutil.rmtree(COG_FOLDERS / prediction, ignore_errors=True)


class _Handler(SimpleHTTPRequestHandler):
    """Serves files, also broken and endless ones, and keeps what is sent to it."""

    received: queue.Queue[dict[str, Any]]

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind not in ("cut", "chunk", "endless", "slow", "redirect"):
            return super().do_GET()
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", urllib.parse.unquote(self.path.removeprefix("/redirect/")))
            self.end_headers()
            return None
        self.send_response(200)
        if kind == "chunk":
            self.send_header("Transfer-Encoding", "chunked")
        elif kind != "endless":
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(b"5\r\nbytes\r\n" if kind == "chunk" else bytes(1000))
            while kind not in ("cut", "chunk"):
                self.wfile.write(bytes(1000))
                time.sleep(0.1 if kind == "slow" else 0)
        return None

    def do_POST(self) -> None:
        self.received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.put({"path": self.path, "type": self.headers["Content-Type"], "content": content})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Loopback:
    """A web server for ``folder``; what it gets by POST or PUT waits in ``received``.

    Paths under ``cut/`` and ``chunk/`` break off, those under ``slow/`` send 10 kB a second, those under
    ``endless/`` never end; ``redirect/URL`` redirects to a URL.
    """

    def __init__(self, folder: Path) -> None:
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        handler = type("Handler", (_Handler,), {"received": self.received})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
