"""Sources of images and PDFs → their bytes: paths, file: and data: URLs, base64, binary files."""

import base64
import binascii
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from string import hexdigits
from typing import IO, Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from vitrail.errors import ImageError
from vitrail.files.opening import open_regular
from vitrail.images.fetch import FetchPolicy, fetch, is_url
from vitrail.images.limits import LIMITS, ImageLimits

_BASE64_STARTS: Final = ("iVBORw0K", "/9j/", "R0lGOD", "UklGR", "Qk")  # PNG, JPEG, GIF, WebP, BMP
_LONGEST_HEAD: Final = 1024  # of a data: URL, before its comma
_LONGEST_PATH: Final = 1 << 16
_PIECE: Final = 1 << 16
_SPACES: Final = b" \t\n\r\v\f"
# The value of a byte that is a hexadecimal digit, -1 for others.
_HEX: Final = np.array([int(chr(c), 16) if chr(c) in hexdigits else -1 for c in range(256)], np.int16)


def read_source(source: Any, *, max_bytes: int, policy: FetchPolicy) -> tuple[bytes, str]:
    """Read the file of any source that `load_image` takes.

    Args:
        source: path, URL, data: URL, base64, bytes or binary file.
        max_bytes: the largest size.
        policy: permitted sources.

    Returns:
        The bytes, and the file's name for error messages.

    Raises:
        ImageError: no such file, it is empty or too large, or the policy excludes it.
    """
    limits = replace(LIMITS, max_bytes=max_bytes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), "this file"
    elif callable(getattr(source, "read", None)):
        data, name = read_binary(source, limits), "this file"
    elif is_url(source):
        data, name = fetch(source, policy), "the file of this URL"
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data, name = (
            data_url(source, limits, ("image/", "application/pdf", "application/x-pdf")),
            "this file",
        )
    else:
        path = local_path(source) if isinstance(source, str) else Path(source)
        with opened_file(path, limits, policy) as file:
            data, name = file.read(max_bytes + 1), shown_path(path)
    check_bytes(len(data), limits, name)
    return data, name


def shown_path(path: Path) -> str:
    """Return a path for an error message: in quotes, and not too long."""
    return repr(str(path) if len(str(path)) <= 160 else f"{str(path)[:157]}…")


def read_binary(file: Any, limits: ImageLimits) -> bytes:
    """Read all of a binary file object, up to one byte more than the limit."""
    try:
        content = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # closed, or not open for reading
        raise ImageError(f"This file object cannot be read: {error}.") from error
    if not isinstance(content, bytes):
        raise ImageError("A file object of an image is opened in binary mode, as by open(path, 'rb').")
    return content


def local_path(text: str) -> Path:
    """Return a path, also of a file: URL."""
    if text[:5].lower() != "file:":
        return Path(text)
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ImageError("A file: URL names a file of this machine, as in file:///home/me/sign.png.")
    return Path(url2pathname(parts.path))


@contextmanager
def opened_file(path: Path, limits: ImageLimits, policy: FetchPolicy) -> Iterator[IO[bytes]]:
    """Open a regular file within the limit of bytes; raise ImageError if it cannot be read."""
    shown = shown_path(path)
    if not policy.allow_files:
        raise ImageError("Local files are not opened here; send the image as a data URL.")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise ImageError(f"{shown} is {kind}; an image file was expected.")
        check_bytes(found.st_size, limits, shown)
        with open_regular(path) as file:  # the file may have changed since
            yield file
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {shown}.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or "this is no valid name"
        raise ImageError(f"{shown} cannot be read: {reason}.") from error


def check_bytes(size: int, limits: ImageLimits, name: str = "The image") -> None:
    """Raise ImageError for an empty file, or one of more bytes than the limit."""
    if size == 0:
        raise ImageError(f"{name} is empty.")
    if size > limits.max_bytes:
        raise ImageError(
            f"{name} has {size >> 20} MiB; at most {limits.max_bytes / (1 << 20):.3g} MiB are read."
        )


def data_url(text: str, limits: ImageLimits, kinds: tuple[str, ...] = ("image/",)) -> bytes:
    """Return the bytes of data:[type][;base64],… (RFC 2397); `kinds`: permitted beginnings of the type."""
    comma = text.find(",", 5, _LONGEST_HEAD)
    if comma < 0:
        raise ImageError("A data URL looks like data:image/png;base64,…; this one has no comma.")
    head, body = text[5:comma], text[comma + 1 :]
    media, *options = head.split(";")
    if media.strip() and not media.strip().lower().startswith((*kinds, "application/octet-stream")):
        raise ImageError(f"A data URL of an image has the type image/…; got {media[:40]!r}.")
    if any(option.strip().lower() == "base64" for option in options):
        return decode_base64(body, "The data URL", limits)
    check_bytes(-(-len(body) // 3), limits)
    return _unescaped(body, limits)


def _unescaped(text: str, limits: ImageLimits | None) -> bytes:
    """Decode a text with %-escapes piece by piece; a % that begins no escape stays."""
    out = bytearray()
    start = 0
    while start < len(text):
        end = start + _PIECE
        cut = text.rfind("%", end - 2, end)
        if cut > 0 and end < len(text):
            end = cut  # not within an escape
        out += _unescaped_piece(text[start:end].encode("utf-8", "replace"))
        if limits is not None:
            check_bytes(len(out) or 1, limits)
        start = end
    return bytes(out)


def _unescaped_piece(data: bytes) -> bytes:
    """Decode as urllib's unquote_to_bytes, without its half microsecond for every %."""
    given = np.frombuffer(data + b"..", np.uint8)
    high, low = _HEX[given[1:-1]], _HEX[given[2:]]
    values = given[:-2].copy()
    (places,) = np.nonzero((values == ord("%")) & (high >= 0) & (low >= 0))
    values[places] = high[places] * 16 + low[places]
    kept = np.ones(len(values), bool)
    kept[places + 1] = kept[places + 2] = False
    plain: bytes = values[kept].tobytes()
    return plain


def decode_base64(text: str, subject: str, limits: ImageLimits) -> bytes:
    """Decode base64 with or without spaces, padding and %-escapes; `subject`: beginning of error messages."""
    check_bytes(len(text) * 3 // 4, limits)
    try:
        plain = (_unescaped(text, None) if "%" in text else text.encode("ascii")).translate(None, _SPACES)
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{subject} holds no valid base64.") from error


def is_base64(text: str, *, files: bool) -> bool:
    """Return whether a text is an image in base64, by transformers' rule. files: existing paths are none."""
    if not text.startswith(_BASE64_STARTS) or len(text) <= 64:
        return False
    if not files or len(text) > _LONGEST_PATH:
        return True
    try:
        return not Path(text).exists()
    except (OSError, ValueError):
        return True
