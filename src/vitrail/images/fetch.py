"""FetchPolicy and fetch: the bytes of a URL, within limits of size, time, redirects and addresses.

Only one parser: the result of urlsplit is checked and passed to the connection, the host's addresses are looked up
once, and the socket connects to the very address that was checked.
"""

import http.client
import io
import socket
import ssl
import threading
import time
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from vitrail.arguments import checked
from vitrail.errors import ImageError
from vitrail.images.addresses import is_global as is_global

_CHUNK: Final = 1 << 16
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORT: Final = {"http": 80, "https": 443}
_LONGEST: Final = 8192  # characters of a URL


@checked
@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Permitted sources of images. The default is for local users; `untrusted` is for requests of others.

    Attributes:
        timeout: seconds for all of it, redirects and look-ups included.
        max_bytes: of the response's body.
        allow_private: allow addresses that are not public (localhost, home networks).
        allow_files: allow local paths and file: URLs.
        ports: the only allowed ones; None for any.
        hosts: the only allowed ones; None for any.
    """

    schemes: tuple[str, ...] = ("https", "http")
    allow_private: bool = True
    allow_files: bool = True
    timeout: float = 30.0
    max_bytes: int = 64 << 20
    max_redirects: int = 3
    ports: tuple[int, ...] | None = None
    hosts: tuple[str, ...] | None = None

    @classmethod
    def strict(cls, hosts: tuple[str, ...] | None) -> "FetchPolicy":
        """Return a policy of https on port 443 to public addresses, of `hosts` unless that is None; no files."""
        return cls(schemes=("https",), allow_private=False, allow_files=False, ports=(443,), hosts=hosts)

    @classmethod
    def untrusted(cls, hosts: tuple[str, ...] = ()) -> "FetchPolicy":
        """Return a policy for untrusted messages: no files, and no URLs except, as `strict`, those of `hosts`."""
        return cls.strict(hosts) if hosts else replace(cls.strict(()), schemes=())

    def within(
        self, timeout: float | None, *, seconds: float = inf, max_bytes: int | None = None
    ) -> "FetchPolicy":
        """Return the policy with another timeout (None keeps this one), within `seconds` and `max_bytes`."""
        wait = self.timeout if timeout is None else timeout
        most = self.max_bytes if max_bytes is None else min(self.max_bytes, max_bytes)
        return replace(self, timeout=min(wait, seconds), max_bytes=most)


def is_url(source: object) -> bool:
    """Return whether `source` is a web address, the only kind that is fetched; other schemes are errors of `fetch`."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def fetch(url: str, policy: FetchPolicy) -> bytes:
    """Fetch the body of a response with status 200. Proxies of the environment are not used.

    Raises:
        ImageError: any failure, without the URL's credentials and query.
    """
    deadline = time.monotonic() + policy.timeout
    target = _parse(url, policy)
    for _ in range(policy.max_redirects + 1):
        try:
            answer = _request(target, policy, deadline)
        except TimeoutError as error:
            raise ImageError(
                f"{_shown(target)} did not answer in full within {policy.timeout:g} s."
            ) from error
        except ssl.SSLError as error:
            raise ImageError(
                f"{_shown(target)} cannot be trusted: {error.reason or 'TLS failed'}."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ImageError(f"{_shown(target)} cannot be fetched: {reason}.") from error
        if isinstance(answer, bytes):
            return answer
        target = _parse(urljoin(target.geturl(), answer.location), policy)
    raise ImageError(f"{_shown(target)}: more than {policy.max_redirects} redirects; give the final address.")


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


def _parse(url: str, policy: FetchPolicy) -> SplitResult:
    """Return the parts of a URL that the policy allows; else raise ImageError."""
    if len(url) > _LONGEST:
        raise ImageError(f"A URL has at most {_LONGEST:,} characters; this one has {len(url):,}.")
    if any(character <= " " or character in "\\\x7f" for character in url):
        raise ImageError(
            "A URL has no spaces, backslashes or control characters; write them as %20 and so on."
        )
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORT.get(parts.scheme)
    except ValueError as error:
        raise ImageError(f"This is no valid URL: {error}.") from error
    if not policy.schemes:
        raise ImageError("URLs are not fetched here; send the image as a data URL.")
    if parts.scheme not in policy.schemes:
        raise ImageError(f"URLs may start with {', '.join(policy.schemes)}; got {parts.scheme!r}.")
    if not parts.hostname:
        raise ImageError("The URL names no host.")
    if parts.username is not None or parts.password is not None:
        raise ImageError("A URL with a user name or password is not fetched; download the image yourself.")
    if policy.ports is not None and port not in policy.ports:
        raise ImageError(f"{_shown(parts)}: port {port} is not allowed.")
    if policy.hosts is not None and parts.hostname.rstrip(".") not in policy.hosts:
        raise ImageError(f"{_shown(parts)}: this host is not on the list of allowed ones.")
    return parts


def _shown(parts: SplitResult) -> str:
    """Return a URL for an error message: no credentials, no query, not too long."""
    host = parts.netloc.rpartition("@")[2]
    text = f"{parts.scheme}://{host}{parts.path}"
    return text if len(text) <= 120 else text[:117] + "…"


def _request(target: SplitResult, policy: FetchPolicy, deadline: float) -> "bytes | _Redirect":
    connection = _Connection(target, policy, deadline)
    path = quote(target.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{quote(target.query, safe='/%:@!$&()*+,;=~-._?')}" if target.query else ""
    headers = {
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "User-Agent": "vitrail",
        "Connection": "close",
    }
    try:
        connection.request("GET", path + query, headers=headers)
        response = connection.getresponse()
        if response.status in _REDIRECTS:
            return _Redirect(response.getheader("Location") or "")
        if response.status != 200:
            meaning = http.client.responses.get(response.status, "an unknown status")
            raise ImageError(f"{_shown(target)} answered {response.status} ({meaning}); 200 was expected.")
        return _body(response, target, policy)
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, target: SplitResult, policy: FetchPolicy) -> bytes:
    """Read the whole body; raise ImageError once it exceeds the limit or differs from its headers."""
    limit = policy.max_bytes
    announced = response.length
    too_large = f"{_shown(target)} is larger than {limit / (1 << 20):.3g} MiB, the most that is fetched."
    if announced is not None and announced > limit:
        raise ImageError(too_large)
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise ImageError(f"{_shown(target)} answered compressed although plain bytes were asked for.")
    body = bytearray()
    while chunk := response.read(_CHUNK):
        body += chunk
        if len(body) > limit:
            raise ImageError(too_large)
    if announced is not None and len(body) < announced:
        raise ImageError(f"{_shown(target)} ended after {len(body)} of {announced} bytes.")
    return bytes(body)


def _addresses(host: str, port: int, policy: FetchPolicy, deadline: float) -> list[tuple[Any, ...]]:
    """Resolve a name to allowed addresses only. In a thread, since a look-up cannot be interrupted."""
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    worker = threading.Thread(target=look_up, daemon=True)
    worker.start()
    worker.join(max(deadline - time.monotonic(), 0))
    if not found:
        raise TimeoutError(f"looking up {host}")
    if isinstance(found[0], Exception):
        raise ImageError(f"There is no host {host!r}, or the network is not reachable.") from found[0]
    if not policy.allow_private:
        for entry in found[0]:
            if not is_global(entry[4][0]):
                raise ImageError(f"{host!r} leads to an address that is not public; it is not fetched.")
    return list(found[0])


class _Connection(http.client.HTTPConnection):
    """Connection to the checked address, over TLS for https; every wait ends at the deadline."""

    def __init__(self, target: SplitResult, policy: FetchPolicy, deadline: float) -> None:
        secure = target.scheme == "https"
        host = target.hostname or ""
        # http.client sends the default port in the Host header unless it is its own default.
        self.default_port = _DEFAULT_PORT["https" if secure else "http"]
        super().__init__(host, target.port or self.default_port)
        self._policy, self._deadline, self._secure = policy, deadline, secure

    def connect(self) -> None:
        plain = self._open()
        if self._secure:
            plain.settimeout(_left(self._deadline))
            try:
                plain = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
            except BaseException:
                plain.close()
                raise
        # HTTPConnection uses only those methods of its socket that _DeadlineSocket has.
        self.sock = _DeadlineSocket(plain, self._deadline)

    def _open(self) -> socket.socket:
        problem: OSError = OSError("no address")
        for family, kind, protocol, _, address in _addresses(
            self.host, self.port, self._policy, self._deadline
        ):
            opened = socket.socket(family, kind, protocol)
            try:
                opened.settimeout(_left(self._deadline))
                opened.connect(address)
                return opened
            except OSError as error:
                opened.close()
                problem = error
        raise problem


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left


class _DeadlineSocket:
    """Socket for http.client. Each wait is limited to the remaining time, so that a slow trickle cannot exceed it."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self._inner, self._deadline = inner, deadline

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(_left(self._deadline))
        self._inner.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._inner, self._deadline), _CHUNK)

    def close(self) -> None:
        self._inner.close()


class _DeadlineReader(io.RawIOBase):
    """Reading end of a _DeadlineSocket; it keeps the connection open until its own close()."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        # The socket counts this file, and so outlives the close() that http.client calls after the headers.
        self._inner, self._deadline, self._file = inner, deadline, inner.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._inner.settimeout(_left(self._deadline))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
