"""URLs against a live local server that misbehaves in every way; nothing leaves the machine."""

from __future__ import annotations

import http.server
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.tiny import image
from vitrail import ImageError, ImageLimits, load_image
from vitrail.images.fetch import FetchPolicy, fetch, is_global

FILE = io.BytesIO()
image(12, 10).save(FILE, "PNG")
PNG = FILE.getvalue()
QUICK = FetchPolicy(timeout=1.0)


class _Handler(http.server.BaseHTTPRequestHandler):
    """What each path does: see the tests."""

    protocol_version = "HTTP/1.1"
    timeout = 10

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name, _, rest = self.path.lstrip("/").partition("/")
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        getattr(self, f"serve_{name.partition('?')[0]}")(rest.partition("?")[0])

    def serve_good(self, rest: str) -> None:
        self._answer(PNG)

    def serve_chunked(self, rest: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(PNG), 100):
            piece = PNG[start : start + 100]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def serve_missing(self, rest: str) -> None:
        self._answer(b"sorry", 404)

    def serve_teapot(self, rest: str) -> None:
        self._answer(b"", 799)

    def serve_page(self, rest: str) -> None:
        self._answer(b"<html>no image</html>")

    def serve_short(self, rest: str) -> None:
        self._answer(PNG[:50], length=len(PNG))
        self.close_connection = True

    def serve_announced(self, rest: str) -> None:
        self._answer(b"", length=1 << 40)

    def serve_compressed(self, rest: str) -> None:
        self._answer(PNG, Content_Encoding="gzip")

    def serve_endless(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        self._pour(b"x" * 65536, 0.0)

    def serve_dripping(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        self._pour(b"x", 0.05)

    def serve_slowhead(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self._pour(b"x", 0.05)

    def serve_silent(self, rest: str) -> None:
        self.server.over.wait()  # type: ignore[attr-defined]

    def serve_garbage(self, rest: str) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        self.close_connection = True

    def serve_hops(self, rest: str) -> None:
        left = int(rest)
        self._answer(b"", 302, Location=f"/hops/{left - 1}" if left else "/good")

    def serve_to(self, rest: str) -> None:
        self._answer(b"", 301, Location=rest.replace("_", "/"))

    def _pour(self, piece: bytes, pause: float) -> None:
        try:
            while not self.server.over.is_set():  # type: ignore[attr-defined]
                self.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            self.close_connection = True


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    running.daemon_threads = True
    running.seen, running.over = [], threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield running
    running.over.set()  # type: ignore[attr-defined]
    running.shutdown()
    running.server_close()


@pytest.fixture
def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("path", ["good", "chunked", "hops/2", "good?size=1", "good/a%20b/ü"])
def test_an_image_is_fetched(url: str, path: str) -> None:
    assert np.array_equal(np.asarray(load_image(f"{url}/{path}")), np.asarray(image(12, 10)))


def test_what_is_sent(server: Any, url: str) -> None:
    load_image(f"{url}/good?a=1&b=%20c#part")
    path, headers = server.seen[-1]
    assert path == "/good?a=1&b=%20c"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie"} & headers.keys()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("missing", r"answered 404 \(Not Found\); 200 was expected"),
        ("teapot", "answered 799"),
        ("page", "no image in a format"),
        ("short", r"ended after 50 of \d+ bytes"),
        ("announced", "larger than 64 MiB"),
        ("compressed", "compressed"),
        ("garbage", "cannot be fetched"),
        ("hops/4", "more than 3 redirects"),
        ("to/file:___etc_passwd", "may start with https, http"),
        ("to/ftp:__localhost_a", "may start with https, http"),
        ("to/http:__user:secret@localhost_a", "user name or password"),
    ],
)
def test_answers_that_are_no_image(url: str, path: str, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        load_image(f"{url}/{path}?token=hidden")
    assert "hidden" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["dripping", "slowhead", "silent"])
def test_what_never_ends_is_left_at_the_deadline(url: str, path: str) -> None:
    """Each byte arrives in time, and the server ends none of these while it runs; only the sum is too long."""
    with pytest.raises(ImageError, match=r"did not answer in full within 0\.6 s"):
        load_image(f"{url}/{path}", timeout=0.6)


def test_an_endless_body_stops_at_the_limit(url: str) -> None:
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        fetch(f"{url}/endless", FetchPolicy(max_bytes=1 << 20))


def test_hops_share_one_deadline(url: str) -> None:
    with pytest.raises(ImageError, match="did not answer"):
        fetch(f"{url}/to/_silent", FetchPolicy(timeout=0.5))


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch(f"http://127.0.0.1:{port}/a.png", QUICK)
    with pytest.raises(ImageError, match=r"no host|did not answer"):
        fetch("http://no-such-host.invalid/a.png", QUICK)


def test_plain_http_is_no_tls(url: str) -> None:
    with pytest.raises(ImageError, match=r"trusted|cannot be fetched"):
        fetch(url.replace("http:", "https:") + "/good", QUICK)


@pytest.mark.parametrize(
    "bad",
    [
        "http://",
        "http:///a.png",
        "http://host name/a.png",
        "http://host\\@127.0.0.1/a.png",
        "http://user@host/a.png",
        "http://host:99999/a.png",
        "http://[::1/a.png",
        "http://host/a\nb",
    ],
)
def test_urls_that_are_none(bad: str) -> None:
    with pytest.raises(ImageError):
        load_image(bad)


def test_a_strict_policy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = FetchPolicy.strict(("images.example",))
    for bad, says in (
        (f"{url}/good", "may start with https"),
        ("https://images.example:8443/a.png", "port 8443"),
        ("https://elsewhere.example/a.png", "not on the list"),
    ):
        with pytest.raises(ImageError, match=says):
            fetch(bad, strict)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *a, **k: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 443))],
    )
    with pytest.raises(ImageError, match="not public"):
        fetch("https://images.example/a.png", strict)


def test_private_addresses_are_refused_after_a_redirect_too(url: str) -> None:
    policy = FetchPolicy(allow_private=False)
    with pytest.raises(ImageError, match="not public"):
        fetch(f"{url}/good", policy)
    with pytest.raises(ImageError, match="not public"):
        fetch("http://localhost:1/", policy)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("::127.0.0.1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_global(address) is public


@pytest.mark.parametrize(
    "address",
    [
        "192.0.0.9",  # protocol assignments; the rest of the block is not public either
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "172.31.255.255",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.7",
        "100.127.255.255",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "0.1.2.3",
        "::ffff:8.8.8.8",  # a public address, but nobody has to write it like that
        "::8.8.8.8",
        "::ffff:0:8.8.8.8",
        "64:ff9b::192.168.0.1",
        "64:ff9b::6440:1",
        "64:ff9b:1::808:808",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:808:808::1",
        "3fff::1",
        "5f00::1",
        "4000::1",
        "fec0::1",
        "fd12:3456::1",
        "febf::1",
        "ff02::1",
        "2606:4700::1111%eth0",
    ],
)
def test_special_addresses_are_not_public(address: str) -> None:
    """Whatever Python's own table says: it changes with the version."""
    assert not is_global(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "172.32.0.1", "192.0.1.1", "223.255.255.254", "100.128.0.1", "2a00::1", "2001:200::1"],
)
def test_neighbours_of_special_addresses_are_public(address: str) -> None:
    assert is_global(address)


@pytest.mark.parametrize(
    "notation",
    ["0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "127.1", "8.8.8.8.", "8.8.8", "08.8.8.8", "[::1]",
     "８.8.8.8", " 8.8.8.8", "8.8.8.8 ", "8.8.8.8/32", "localhost", ""],
)  # fmt: skip
def test_other_notations_are_no_addresses(notation: str) -> None:
    """What a resolver makes of them is checked; the text itself passes nowhere."""
    assert not is_global(notation)


@pytest.mark.parametrize(
    "host", ["0x7f.1", "0x7f000001", "2130706433", "127.1", "127.0.0.1.", "localhost.", "[::ffff:127.0.0.1]"]
)
def test_loopback_in_other_notations_is_refused(host: str) -> None:
    """Resolvers read them, or say that there is no such host."""
    with pytest.raises(ImageError, match=r"not public|no host"):
        fetch(f"http://{host}:1/a.png", FetchPolicy(allow_private=False, timeout=2))


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is looked up once: a second answer (DNS rebinding) changes nothing."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.server_port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert fetch("http://images.example/good", QUICK) == PNG
    assert asked == ["images.example"]


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("8.8.8.8", "192.0.2.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    with pytest.raises(ImageError, match="not public"):
        fetch("https://images.example/a.png", FetchPolicy.strict(None))


def test_nothing_is_fetched_for_strangers_but_from_named_hosts() -> None:
    with pytest.raises(ImageError, match="URLs are not fetched here; send the image as a data URL"):
        fetch("https://images.example/a.png", FetchPolicy.untrusted())
    policy = FetchPolicy.untrusted(("images.example",))
    assert policy == FetchPolicy.strict(("images.example",)) and not policy.allow_files
    with pytest.raises(ImageError, match="not on the list"):
        fetch("https://elsewhere.example/a.png", policy)


def test_a_url_is_not_endless() -> None:
    with pytest.raises(ImageError, match="at most 8,192 characters; this one has 1,000,019"):
        fetch("https://a.example/?" + "a" * 1_000_000, QUICK)


def test_a_url_is_fetched_up_to_the_limit_of_an_image(url: str) -> None:
    """The smaller of the policy's bytes and the image's."""
    with pytest.raises(ImageError, match=r"larger than 0\.0625 MiB, the most that is fetched"):
        load_image(f"{url}/endless", limits=ImageLimits(max_bytes=1 << 16))
