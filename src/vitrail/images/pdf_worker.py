"""Worker process that renders one PDF: bytes in, pages as pixels out, within the limits of the request. See pdf.py.

A page of a few hundred bytes can keep PDFium busy for hours inside a single call. In a process of its own it is killed
at the deadline, its memory is bounded, and a crash of PDFium ends this process only.

The first request holds the limits as JSON and the file; its answer is the number of pages. Each further request holds
the number of a page, in any order; its answer is the page's size and pixels, w·h·3 bytes of RGB, or a fault.
"""

import json
import math
import struct
from typing import Any, Final

from vitrail.files.worker_process import serve
from vitrail.images.limits import PdfLimits

LENGTH: Final = struct.Struct(">Q")  # of the JSON before a file
NUMBER: Final = struct.Struct(">I")  # the whole request for a page; a file's is longer
HEAD: Final = struct.Struct(">4sIdd")  # kind; number of pages or of a page; width and height
COUNT, PAGE = b"DOCU", b"PAGE"
LOCKED, BROKEN, MANY, SHAPE, FAILED = b"LOCK", b"BROK", b"MANY", b"SHAP", b"FAIL"
_PASSWORD: Final = 4  # FPDF_ERR_PASSWORD


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    import pypdfium2  # noqa: F401  # before limits hold

    serve(Renderer().answer)


class Renderer:
    """Render one file: the file → the number of its pages; then the number of a page → the page."""

    def __init__(self) -> None:
        self._document: Any = None
        self._limits, self._most = PdfLimits(), 0

    def answer(self, request: bytes) -> bytes:
        """Return a head, with the pixels of a page behind it."""
        return self._page(*NUMBER.unpack(request)) if len(request) == NUMBER.size else self._open(request)

    def _open(self, request: bytes) -> bytes:
        import pypdfium2

        self._close()
        begin = LENGTH.size + LENGTH.unpack_from(request)[0]
        limits = PdfLimits(**json.loads(request[LENGTH.size : begin]))
        try:
            document = pypdfium2.PdfDocument(request[begin:])
            document.init_forms()  # renders the content of form fields
            pages = len(document)
        except pypdfium2.PdfiumError as error:
            locked = getattr(error, "err_code", None) == _PASSWORD or "password" in str(error).lower()
            return HEAD.pack(LOCKED if locked else BROKEN, 0, 0, 0)
        if pages > limits.max_pages or pages < 1:
            return HEAD.pack(MANY if pages > 0 else BROKEN, max(pages, 0), 0, 0)
        sizes: list[tuple[float, float]] = [document.get_page_size(number) for number in range(pages)]
        wrong = [number for number, size in enumerate(sizes, 1) if not _shows(size, limits)]
        if wrong:
            return HEAD.pack(SHAPE, wrong[0], *sizes[wrong[0] - 1])
        self._document, self._limits, self._most = document, limits, limits.page_pixels(pages)
        return HEAD.pack(COUNT, pages, 0, 0)

    def _page(self, number: int) -> bytes:
        import pypdfium2

        try:
            bitmap = _render(self._document[number - 1], self._limits, self._most)
        except pypdfium2.PdfiumError:
            bitmap = None
        if bitmap is None:
            return HEAD.pack(FAILED, number, 0, 0)
        rows, row = memoryview(bitmap.buffer).cast("B"), bitmap.width * 3
        # A row may be longer in memory than its pixels.
        parts = (rows[y * bitmap.stride : y * bitmap.stride + row] for y in range(bitmap.height))
        head = HEAD.pack(PAGE, number, bitmap.width, bitmap.height)
        if number == len(self._document):
            self._close()
        return b"".join((head, *parts))

    def _close(self) -> None:
        if self._document is not None:
            self._document.close()
            self._document = None


def _render(page: Any, limits: PdfLimits, most: int) -> Any:
    """Render a page to at most `most` pixels; return None if its size, known only now, makes no image."""
    import pypdfium2

    size = page.get_size()
    if not _shows(size, limits):
        return None
    scale = _scale(size, limits, most)
    if math.ceil(size[0] * scale) * math.ceil(size[1] * scale) > most:
        return None
    return page.render(scale=scale, rev_byteorder=True, force_bitmap_format=pypdfium2.raw.FPDFBitmap_BGR)


def _shows(size: tuple[float, float], limits: PdfLimits) -> bool:
    """Return whether a page of (width, height) in points makes an image."""
    width, height = size
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
        return False
    return max(size) <= limits.max_aspect * min(size)


def _scale(size: tuple[float, float], limits: PdfLimits, most: int) -> float:
    """Return pixels per point: the wanted resolution, or the one at which the page has `most` pixels."""
    width, height = size
    # PDFium rounds both sides up, so the root of (width·s + 1)·(height·s + 1) = most is on the safe side.
    half = width + height
    root = math.sqrt(half * half + 4 * width * height * (most - 1))
    return float(min(limits.dpi / 72, (root - half) / (2 * width * height)))
