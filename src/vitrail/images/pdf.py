"""load_pages: a PDF → its pages as images, within limits of pages, pixels, time and memory. Rendering: pdf_worker.py.

In messages a PDF counts as its pages, in order, like images. Images of other files: load.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from vitrail.arguments import checked
from vitrail.errors import ImageError, MissingPackageError
from vitrail.files.lfs import refuse_pointer
from vitrail.files.worker_pool import WorkerPool
from vitrail.files.worker_process import WorkerEndedError
from vitrail.images.fetch import FetchPolicy, is_url
from vitrail.images.limits import PDF_LIMITS as PDF_LIMITS, PdfLimits as PdfLimits
from vitrail.images.pdf_worker import BROKEN, COUNT, FAILED, HEAD, LENGTH, LOCKED, MANY, NUMBER, PAGE, SHAPE
from vitrail.images.preflight import check_size
from vitrail.images.request import ImageRequest, image_request

if TYPE_CHECKING:
    from vitrail.images.load import PilImage

_SIGN: Final = b"%PDF-"
_DATA_URLS: Final = ("data:application/pdf", "data:application/x-pdf")
Progress = Callable[[int, int], None]
_renderers = WorkerPool(
    "vitrail.images.pdf_worker",
    ("pypdfium2",),
    answer_bytes=HEAD.size,
    work="PDFs are rendered",
    advice="let this program start processes, or save the pages as images",
)


def names_pdf(source: Any) -> bool:
    """Return whether a source is a PDF by name (a path or URL that ends in .pdf, a data: URL) or by its bytes."""
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
    """Return whether a file begins as a PDF does; white space and a byte order mark may precede."""
    return bytes(data[:1024]).lstrip(b"\xef\xbb\xbf\0\t\n\f\r ").startswith(_SIGN)


def file_holds_pdf(path: Path) -> bool:
    """Return whether a local file is a PDF by its first bytes; by name where it cannot or may not be read."""
    with image_request() as request:
        if request.policy.allow_files:
            try:
                if path.is_file():  # reading a pipe would block
                    with path.open("rb") as file:
                        return holds_pdf(file.read(1024))
            except (OSError, ValueError):  # opening it as an image raises it, with the name
                return names_pdf(path)
    return names_pdf(path)


@checked
def load_pages(
    source: Any,
    timeout: float | None = None,
    *,
    limits: PdfLimits | None = None,
    policy: FetchPolicy | None = None,
    progress: Progress | None = None,
) -> list[PilImage]:
    """Load the images of a file, in RGB: all pages of a PDF in order, else the one image of `load_image`.

    Args:
        source: a path, URL, data: URL, bytes or binary file; its content decides, not its name.
        timeout: seconds for a URL.
        limits: in place of those of the surrounding `image_request`, or the defaults.
        policy: likewise.
        progress: called with (pages rendered, pages in all).

    Raises:
        ImageError: a PDF that is encrypted, damaged, empty, too long or too large, with its name and the limit; else as
            `load_image`.
        MissingPackageError: the extra `pdf` is not installed.
    """
    from vitrail.images.load import load_image
    from vitrail.images.sources import read_source

    with image_request(policy=policy, pdf_limits=limits) as request:
        given = request.pdf_limits
        if given.max_pixels > request.limits.max_pixels:
            given = replace(given, max_pixels=request.limits.max_pixels)
        if not isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike)) and not hasattr(
            source, "read"
        ):
            return [load_image(source)]
        most = max(given.max_bytes, request.limits.max_bytes)
        with request.timed() as left:
            policy = request.policy.within(timeout, seconds=left, max_bytes=most)
            data, name = read_source(source, max_bytes=most, policy=policy)
        if not holds_pdf(data):
            if names_pdf(source):
                refuse_pointer(data, name, ImageError)
                raise ImageError(
                    f"{name} is no PDF, or a damaged one: it does not begin with {_SIGN.decode()}."
                )
            named = isinstance(source, (str, os.PathLike)) and not is_url(source)  # so errors name the file
            return [load_image(source if named else data)]
        if len(data) > given.max_bytes:
            raise ImageError(
                f"{name} has {len(data) >> 20} MiB; PDFs of at most {given.max_bytes >> 20} MiB are read."
            )
        request.count_bytes(len(data))
        return _render(data, name, given, progress, request)


def _render(
    data: bytes, name: str, limits: PdfLimits, progress: Progress | None, request: ImageRequest
) -> list[PilImage]:
    if find_spec("pypdfium2") is None:
        raise MissingPackageError(
            f"{name} is a PDF; reading it needs the package pypdfium2: pip install 'vitrail[pdf]'"
        )
    pages: list[PilImage] = []
    asked = json.dumps(asdict(limits)).encode("ascii")
    with request.timed() as left:
        seconds = min(limits.max_seconds, left)
        until = time.monotonic() + seconds
        with _renderers.worker() as worker:

            def ask(data: bytes, most: int) -> bytes:
                left = until - time.monotonic()
                if left <= 0:
                    raise WorkerEndedError(True, 0)
                return worker.ask(data, left, memory=limits.max_memory, answer_bytes=HEAD.size + most)

            try:
                total = _pages(ask(LENGTH.pack(len(asked)) + asked + data, 0), name, limits)
                most = limits.page_pixels(total)
                for number in range(1, total + 1):
                    pages.append(_page(ask(NUMBER.pack(number), 3 * most), number, name, most, request))
                    if progress is not None:
                        progress(number, total)
            except (EOFError, WorkerEndedError) as error:
                worker.stop()
                if isinstance(error, WorkerEndedError) and error.timed_out:
                    raise ImageError(
                        f"{name} is not rendered after {seconds:g} s, the limit; {len(pages)} of its pages are. "
                        "Raise max_seconds (--pdf-seconds) if it should take longer."
                    ) from error
                raise ImageError(
                    f"{name} is damaged, or needs more than {limits.max_memory >> 20} MiB to be rendered: PDFium ended "
                    f"at page {len(pages) + 1}."
                ) from error
            except BaseException:
                worker.stop()  # it still holds the file
                raise
    return pages


def _pages(frame: bytes, name: str, limits: PdfLimits) -> int:
    """Return the number of pages; raise ImageError for a fault."""
    kind, count, width, height = _head(frame)
    if kind == LOCKED:
        raise ImageError(f"{name} is encrypted and opens with a password only; save a copy without one.")
    if kind == MANY or (kind == COUNT and count > limits.max_pages):
        raise ImageError(
            f"{name} has {count:,} pages; at most {limits.max_pages:,} are read. Split it, or raise max_pages (--pdf-pages)."
        )
    if kind == SHAPE:
        raise ImageError(
            f"page {count} of {name} measures {round(width, 1)} × {round(height, 1)} points (width × height): "
            f"one side is empty or more than {limits.max_aspect:g} times the other."
        )
    if kind == BROKEN:
        raise ImageError(f"{name} is damaged, or a PDF without pages; it cannot be opened.")
    if kind != COUNT or count < 1:
        raise EOFError
    return count


def _page(answer: bytes, number: int, name: str, most: int, request: ImageRequest) -> PilImage:
    """Return a page of at most `most` pixels."""
    import numpy as np

    from vitrail.images.load import from_levels

    kind, place, *size = _head(answer[: HEAD.size])
    if kind == FAILED:
        raise ImageError(f"page {number} of {name} is damaged; it cannot be rendered.")
    if kind != PAGE or place != number or not all(1 <= side <= most for side in size):
        raise EOFError
    width, height = map(int, size)
    if width * height > most or len(answer) != HEAD.size + height * width * 3:
        raise EOFError
    check_size(height, width, request.limits)
    request.count_page(height, width)
    pixels = np.frombuffer(answer, dtype=np.uint8, offset=HEAD.size)
    return from_levels(pixels.reshape(height, width, 3))


def _head(frame: bytes) -> tuple[bytes, int, float, float]:
    if len(frame) != HEAD.size:
        raise EOFError
    kind, number, width, height = HEAD.unpack(frame)
    return kind, number, width, height
