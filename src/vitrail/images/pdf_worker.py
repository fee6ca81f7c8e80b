"""The process that reads one PDF: bytes come in, pages as pixels go out. Limits are handed to it; it decides nothing.

A process of its own, because a page of a few hundred bytes can keep PDFium busy for hours inside a single call: it is
killed when its time is over, its memory is bounded, and if PDFium crashes, only this process ends. See pdf.py.

It receives the limits as JSON and the file, and sends the number of pages, then for each page its size and its pixels,
w·h·3 bytes of RGB; or a fault.
"""

import json
import math
import struct
from collections.abc import Callable
from typing import Any, Final

from vitrail.images.limits import PdfLimits

HEAD: Final = struct.Struct(">4sIdd")  # what it is; a number of pages or of a page; width and height
COUNT, PAGE = b"DOCU", b"PAGE"
LOCKED, BROKEN, MANY, SHAPE, FAILED = b"LOCK", b"BROK", b"MANY", b"SHAP", b"FAIL"
_PASSWORD: Final = 4  # FPDF_ERR_PASSWORD

Send = Callable[[bytes | memoryview], None]


def serve(receive: Callable[[], bytes], send: Send) -> None:
    """Answer one file."""
    limits = PdfLimits(**json.loads(receive()))
    _answer(receive(), limits, send)


def _answer(data: bytes, limits: PdfLimits, send: Send) -> None:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
        document.init_forms()  # what was typed into a form is shown only with this
        pages = len(document)
    except pypdfium2.PdfiumError as error:
        locked = getattr(error, "err_code", None) == _PASSWORD or "password" in str(error).lower()
        send(HEAD.pack(LOCKED if locked else BROKEN, 0, 0, 0))
        return
    if pages > limits.max_pages or pages < 1:
        send(HEAD.pack(MANY if pages > 0 else BROKEN, max(pages, 0), 0, 0))
        return
    sizes: list[tuple[float, float]] = [document.get_page_size(number) for number in range(pages)]
    wrong = [number for number, size in enumerate(sizes, 1) if not _shows(size, limits)]
    if wrong:
        send(HEAD.pack(SHAPE, wrong[0], *sizes[wrong[0] - 1]))
        return
    send(HEAD.pack(COUNT, pages, 0, 0))
    most = limits.page_pixels(pages)
    for number in range(1, pages + 1):
        try:
            bitmap = _render(document[number - 1], limits, most)
        except pypdfium2.PdfiumError:
            bitmap = None
        if bitmap is None:
            send(HEAD.pack(FAILED, number, 0, 0))
            return
        send(HEAD.pack(PAGE, number, bitmap.width, bitmap.height))
        rows, row = memoryview(bitmap.buffer).cast("B"), bitmap.width * 3
        if bitmap.stride != row:  # a row may be longer in memory than its pixels
            parts = (rows[y * bitmap.stride : y * bitmap.stride + row] for y in range(bitmap.height))
            rows = memoryview(b"".join(parts))
        send(rows[: row * bitmap.height])


def _render(page: Any, limits: PdfLimits, most: int) -> Any:
    """A page of at most that many pixels; None for one whose size, now that it is read, makes no image."""
    import pypdfium2

    size = page.get_size()
    if not _shows(size, limits):
        return None
    scale = _scale(size, limits, most)
    if math.ceil(size[0] * scale) * math.ceil(size[1] * scale) > most:
        return None
    return page.render(scale=scale, rev_byteorder=True, force_bitmap_format=pypdfium2.raw.FPDFBitmap_BGR)


def _shows(size: tuple[float, float], limits: PdfLimits) -> bool:
    """Whether a page of that (width, height) in points makes an image."""
    width, height = size
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
        return False
    return max(size) <= limits.max_aspect * min(size)


def _scale(size: tuple[float, float], limits: PdfLimits, most: int) -> float:
    """Pixels per point: the wanted resolution, or the one at which the page has `most` pixels."""
    width, height = size
    # PDFium rounds both sides up, so the root of (width·s + 1)·(height·s + 1) = most is on the safe side.
    half = width + height
    root = math.sqrt(half * half + 4 * width * height * (most - 1))
    return float(min(limits.dpi / 72, (root - half) / (2 * width * height)))
