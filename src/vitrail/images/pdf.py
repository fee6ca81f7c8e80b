"""A PDF → its pages as pictures, within limits of pages, pixels, time and memory. Rendered by PDFium in pdf_worker.py.

A PDF counts as its pages, in order, wherever a picture may be named in a message. Images of other files: load.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from vitrail.arguments import checked
from vitrail.errors import ImageError, MissingPackageError, UnsupportedError
from vitrail.files.lfs import refuse_pointer
from vitrail.images.fetch import FetchPolicy, is_url

if TYPE_CHECKING:
    from vitrail.images.load import PilImage

_SIGN: Final = b"%PDF-"
_DATA_URLS: Final = ("data:application/pdf", "data:application/x-pdf")
_START: Final = "import sys; sys.path[:] = sys.argv[1:]; from vitrail.images.pdf_worker import main; main()"

Progress = Callable[[int, int], None]


@checked
@dataclass(frozen=True, slots=True)
class PdfLimits:
    """What a PDF may be, and how its pages are rendered.

    max_pages: a longer file is refused; max_bytes: of the file; max_seconds: for all pages together; max_memory: bytes
    of the process that renders (not on Windows). dpi: pixels per inch; max_pixels: of one page, height · width: a page
    that has more at `dpi` is rendered coarser. max_aspect: longer over shorter side of a page.
    """

    max_pages: int = 50
    max_bytes: int = 256 << 20
    max_pixels: int = 8_000_000
    max_seconds: float = 60.0
    max_memory: int = 4 << 30
    dpi: int = 150
    max_aspect: float = 200.0


PDF_LIMITS: Final = PdfLimits()


def names_pdf(source: Any) -> bool:
    """Whether a picture's source is a PDF by its name: a path or URL that ends in .pdf, a data: URL; or by its bytes."""
    if isinstance(source, (bytes, bytearray)):
        return holds_pdf(source)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        return False
    if source[:24].lower().startswith(_DATA_URLS):
        return True
    if is_url(source):
        try:
            source = urlsplit(source).path
        except ValueError:
            return False
    return len(source) < 4096 and source.lower().endswith(".pdf")


def holds_pdf(data: bytes | bytearray) -> bool:
    """Whether a file's bytes begin as a PDF does; white space and a byte order mark may stand before."""
    return bytes(data[:1024]).lstrip(b"\xef\xbb\xbf\0\t\n\f\r ").startswith(_SIGN)


@checked
def load_pages(
    source: Any,
    timeout: float | None = None,
    *,
    limits: PdfLimits = PDF_LIMITS,
    policy: FetchPolicy | None = None,
    progress: Progress | None = None,
) -> list[PilImage]:
    """The pictures of a file, in RGB: all pages of a PDF in order, else the one picture that `load_image` opens.

    source: a path, URL, data: URL, bytes or binary file; what it holds decides, not its name. timeout: seconds for a
    URL. progress: called with (pages rendered, pages in all).
    Raises ImageError, naming the file and the limit, for a PDF that is encrypted, damaged, empty, too long or too large,
    and MissingPackageError without the extra `pdf`; otherwise as `load_image`.
    """
    from vitrail.images.load import LIMITS, POLICY, load_image, read_source

    policy = POLICY if policy is None else policy
    if not isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike)) and not hasattr(
        source, "read"
    ):
        return [load_image(source)]
    most = max(limits.max_bytes, LIMITS.max_bytes)
    data, name = read_source(source, timeout, max_bytes=most, policy=policy)
    if not holds_pdf(data):
        if names_pdf(source):
            refuse_pointer(data, name, ImageError)
            raise ImageError(f"{name} is no PDF, or a damaged one: it does not begin with {_SIGN.decode()}.")
        return [load_image(source if isinstance(source, (str, os.PathLike)) and not is_url(source) else data)]
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"{name} has {len(data) >> 20} MiB; PDFs of at most {limits.max_bytes >> 20} MiB are read."
        )
    return _render(data, name, limits, progress)


def _render(data: bytes, name: str, limits: PdfLimits, progress: Progress | None) -> list[PilImage]:
    if find_spec("pypdfium2") is None:
        raise MissingPackageError(
            f"{name} is a PDF; reading it needs the package pypdfium2: pip install 'vitrail[pdf]'"
        )
    began = time.monotonic()
    pages: list[PilImage] = []
    with _worker(limits.max_seconds) as process:
        try:
            answer = _ask(process, data, limits)
            total = _pages(answer, name, limits)
            for number in range(1, total + 1):
                pages.append(_page(process.stdout, number, name))
                if progress is not None:
                    progress(number, total)
        except EOFError as error:
            if time.monotonic() - began >= limits.max_seconds:
                raise ImageError(
                    f"{name} is not rendered after {limits.max_seconds:g} s, the limit; {len(pages)} of its pages are. "
                    "Raise max_seconds (--pdf-seconds) if it should take longer."
                ) from error
            raise ImageError(
                f"{name} is damaged, or needs more than {limits.max_memory >> 20} MiB to be rendered: PDFium ended "
                f"at page {len(pages) + 1}."
            ) from error
    return pages


@contextmanager
def _worker(seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """The rendering process; it is gone afterwards, and after `seconds` in any case."""
    if not sys.executable:
        raise UnsupportedError(
            "PDFs are rendered by a second Python process, and this program does not say where Python is"
        )
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        for stream in (process.stdout, process.stdin):
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # what was left to write has no reader
                continue
        process.wait()


def _ask(process: subprocess.Popen[bytes], data: bytes, limits: PdfLimits) -> Mapping[str, Any]:
    """Send the file; the worker's first line. EOFError when the worker has ended."""
    if process.stdin is None:
        raise EOFError
    try:
        process.stdin.write(json.dumps(asdict(limits)).encode("ascii") + b"\n")
        process.stdin.write(data)
        process.stdin.close()
    except OSError as error:
        raise EOFError from error
    return _line(process.stdout)


def _line(stream: IO[bytes] | None) -> Mapping[str, Any]:
    line = b"" if stream is None else stream.readline(4096)
    if not line.endswith(b"\n"):
        raise EOFError
    found: Mapping[str, Any] = json.loads(line)
    return found


def _pages(answer: Mapping[str, Any], name: str, limits: PdfLimits) -> int:
    """How many pages come; ImageError for a fault."""
    fault, count = answer.get("fault"), int(answer.get("pages", 0))
    if fault == "password":
        raise ImageError(f"{name} is encrypted and opens with a password only; save a copy without one.")
    if fault == "pages":
        raise ImageError(
            f"{name} has {count:,} pages; at most {limits.max_pages:,} are read. Split it, or raise max_pages (--pdf-pages)."
        )
    if fault == "shape":
        raise ImageError(
            f"page {answer['page']} of {name} measures {answer['width']} × {answer['height']} points (width × height): "
            f"one side is empty or more than {limits.max_aspect:g} times the other."
        )
    if fault:
        raise ImageError(f"{name} is damaged, or a PDF without pages; it cannot be opened.")
    return count


def _page(stream: IO[bytes] | None, number: int, name: str) -> PilImage:
    """The next page."""
    import numpy as np

    from vitrail.images.load import check_size, from_levels

    head = _line(stream)
    if stream is None or "fault" in head:
        raise ImageError(f"page {number} of {name} is damaged; it cannot be rendered.")
    height, width = int(head["height"]), int(head["width"])
    check_size(height, width)
    pixels = stream.read(height * width * 3)
    if len(pixels) < height * width * 3:
        raise EOFError
    return from_levels(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3))
