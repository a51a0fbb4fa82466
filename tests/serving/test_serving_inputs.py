"""Videos of requests: from data URLs and from the web, within limits and from public addresses."""

from __future__ import annotations

import contextlib
import ctypes
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.server import Loopback

from thinksound.errors import InputError
from thinksound.serving import inputs
from thinksound.serving.inputs import Limits, fetch

HERE = Limits(private=True)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Loopback]:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "large.webm").write_bytes(bytes(1_500_000))
    with contextlib.closing(Loopback(tmp_path / "web")) as loopback:
        yield loopback


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    transfers = [thread for thread in threading.enumerate() if isinstance(thread, inputs._Transfer)]
    for thread in transfers:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("url", "content", "name"),
    [
        ("data:video/mp4;base64,AAEC", b"\0\1\2", "video.mp4"),
        (" DATA:video/webm;base64,AAEC ", b"\0\1\2", "video.webm"),
        ("data:,a%20b", b"a b", "video"),
        ("data:video/mp4;charset=utf-8;BASE64,AAEC\n AAEC", b"\0\1\2" * 2, "video.mp4"),
        ("data:video/mp4;base64,-_-_AA", b"\xfb\xff\xbf\0", "video.mp4"),  # URL-safe, without padding
        ("data:image/gif;base64,AA%3D%3D", b"\0", "video.gif"),
    ],
)
def test_data_urls(tmp_path: Path, url: str, content: bytes, name: str) -> None:
    path = fetch(url, tmp_path, Limits())
    assert (path.name, path.read_bytes()) == (name, content)


def test_a_file_on_the_web_keeps_its_ending(web: Loopback, tmp_path: Path) -> None:
    for url in (f"{web.url}/large.webm?key=1.mp4", f"{web.url}/redirect/{web.url}/large.webm"):
        path = fetch(url.replace("http:", "Http:", 1), tmp_path, HERE)
        assert (path.name, path.read_bytes()) == ("video.webm", bytes(1_500_000))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "0", "[::1]", "[::]"),
        *("10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "224.0.0.1", "255.255.255.255"),
        *("169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "[fec0::1]", "[::ffff:127.0.0.1]"),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "user:password@127.0.0.1"),
    ],
)
def test_addresses_that_are_not_public_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(
        InputError, match=r"leads to .*, which is no public address; .*THINKSOUND_PRIVATE_URLS=1"
    ):
        fetch(f"http://{host}:9/film.mp4", tmp_path, Limits())


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    inputs._check_address(address)


def test_a_redirect_is_checked_too(web: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = inputs._check_address
    monkeypatch.setattr(inputs, "_check_address", lambda text: text == "127.0.0.1" or check(text))
    assert fetch(f"{web.url}/large.webm", tmp_path, Limits())
    with pytest.raises(InputError, match=r"leads to 127\.0\.0\.2, which is no public address"):
        fetch(
            f"{web.url}/redirect/{web.url.replace('127.0.0.1', '127.0.0.2')}/large.webm", tmp_path, Limits()
        )


def test_a_name_that_leads_elsewhere_the_second_time(
    web: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, answers = socket.getaddrinfo, iter(["8.8.8.8"])

    def changing(_: str, *arguments: Any, **keywords: Any) -> Any:
        return look_up(next(answers, "127.0.0.1"), *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    with pytest.raises(InputError, match=r"leads to 127\.0\.0\.1, which is no public address"):
        fetch(web.url.replace("127.0.0.1", "rebound.test") + "/large.webm", tmp_path, Limits())


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("large.webm", r"larger than the 1 MB that this server takes"),
        ("endless/film.mp4", r"larger than the 1 MB that this server takes"),
        ("slow/film.mp4", r"not complete after 0\.5 s \(0\.0 MB came\)"),
        ("cut/film.mp4", r"127\.0\.0\.1 does not give it \(.*1000 bytes read"),
        ("nowhere.mp4", r"does not give it \(the answer is 404 File not found\)"),
        ("redirect/http://[::1", r"does not give it \(Invalid IPv6 URL\)"),
        ("chunk/film.mp4", r"does not give it \(Response ended prematurely"),
        ("redirect/file:///etc/passwd", r"does not give it \(No connection adapters were found for 'file:"),
    ],
)
def test_what_the_web_does_not_give(web: Loopback, tmp_path: Path, path: str, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"^video: .*{reason}"):
        fetch(
            f"{web.url}/{path}",
            tmp_path,
            Limits(megabytes=1, seconds=0.5 if "slow" in path else 60, private=True),
        )
    assert time.monotonic() - started < 30


def test_a_server_that_sends_its_headers_byte_by_byte(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                while True:
                    connection.sendall(b"H")
                    time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        port = listening.getsockname()[1]
        with pytest.raises(InputError, match=r"not complete after 0\.5 s"):
            fetch(f"http://127.0.0.1:{port}/film.mp4", tmp_path, Limits(seconds=0.5, private=True))


def test_cancelling_ends_a_transfer(web: Loopback, tmp_path: Path) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(thread: int) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Cancelled))

    threading.Timer(0.3, cancel, [threading.get_ident()]).start()  # as Cog does
    with pytest.raises(Cancelled):
        fetch(f"{web.url}/slow/film.mp4", tmp_path, HERE)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://", r"names no host"),
        ("http://[::1", r"names no host"),
        ("ftp://host/film.mp4", r"is no URL; give an http, https or data URL"),
        ("data:video/mp4;base64,A", r"a damaged data URL"),
        ("data:video/mp4;base64,AA!!", r"a damaged data URL"),
        ("data:video/mp4", r"a data URL without a comma"),
        (f"data:;base64,{'A' * 1_400_000}", r"larger than the 1 MB"),
        ("http://nowhere.invalid/film.mp4", r"nowhere\.invalid does not give it \("),
    ],
)
def test_urls_that_are_none(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^video:? .*{message}"):
        fetch(url, tmp_path, Limits(megabytes=1))


def test_limits_come_from_the_environment() -> None:
    assert Limits.from_environment({}) == Limits(2000, 600.0, False)
    given = {"THINKSOUND_MAX_INPUT_MB": "50", "THINKSOUND_PRIVATE_URLS": "1"}
    assert Limits.from_environment(given) == Limits(50, private=True)
    for wrong in ("0", "-1", "1.5", "all"):
        with pytest.raises(
            InputError, match=rf"THINKSOUND_MAX_INPUT_MB '{re.escape(wrong)}'; give a whole number"
        ):
            Limits.from_environment({"THINKSOUND_MAX_INPUT_MB": wrong})
