"""The process that reads one PDF: bytes come in, pages as pixels go out. Limits are handed to it; it decides nothing.

A process of its own, because a page of a few hundred bytes can keep PDFium busy for hours inside a single call: it is
killed when its time is over, its memory is bounded, and if PDFium crashes, only this process ends. See pdf.py.

Standard input: a line of JSON (the limits), then the file. Standard output: a line of JSON, {"pages": n} or {"fault":
name, …}; then for each page a line {"width": w, "height": h} and w·h·3 bytes of RGB, or a last line with a fault.
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import IO, Any

_PASSWORD = 4  # FPDF_ERR_PASSWORD


def main() -> None:
    """Answer one question on standard input."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    limits = json.loads(source.readline())
    _bound_memory(limits["max_memory"])
    _answer(source.read(), limits, target)
    target.flush()


def _answer(data: bytes, limits: Mapping[str, Any], target: IO[bytes]) -> None:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
        document.init_forms()  # what was typed into a form is shown only with this
        pages = len(document)
    except pypdfium2.PdfiumError as error:
        locked = getattr(error, "err_code", None) == _PASSWORD or "password" in str(error).lower()
        _tell(target, fault="password" if locked else "broken")
        return
    if pages > limits["max_pages"]:
        _tell(target, fault="pages", pages=pages)
        return
    if pages < 1:
        _tell(target, fault="broken")
        return
    sizes: list[tuple[float, float]] = [document.get_page_size(number) for number in range(pages)]
    wrong = [number for number, size in enumerate(sizes, 1) if not _shows(size, limits)]
    if wrong:
        width, height = sizes[wrong[0] - 1]
        _tell(target, fault="shape", page=wrong[0], width=round(width, 1), height=round(height, 1))
        return
    _tell(target, pages=pages)
    for number, size in enumerate(sizes):
        try:
            bitmap = document[number].render(
                scale=_scale(size, limits),
                rev_byteorder=True,
                force_bitmap_format=pypdfium2.raw.FPDFBitmap_BGR,
            )
        except pypdfium2.PdfiumError:
            _tell(target, fault="page", page=number + 1)
            return
        _tell(target, width=bitmap.width, height=bitmap.height)
        rows, row = memoryview(bitmap.buffer).cast("B"), bitmap.width * 3
        for y in range(bitmap.height):  # a row may be longer in memory than its pixels
            target.write(rows[y * bitmap.stride : y * bitmap.stride + row])


def _shows(size: tuple[float, float], limits: Mapping[str, Any]) -> bool:
    """Whether a page of that (width, height) in points makes a picture."""
    width, height = size
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
        return False
    return bool(max(size) <= limits["max_aspect"] * min(size))


def _scale(size: tuple[float, float], limits: Mapping[str, Any]) -> float:
    """Pixels per point: the wanted resolution, or the one at which the page has `max_pixels`."""
    width, height = size
    # PDFium rounds both sides up, so the root of (width·s + 1)·(height·s + 1) = max_pixels is on the safe side.
    half = width + height
    root = math.sqrt(half * half + 4 * width * height * (limits["max_pixels"] - 1))
    return float(min(limits["dpi"] / 72, (root - half) / (2 * width * height)))


def _tell(target: IO[bytes], **fields: Any) -> None:
    target.write(json.dumps(fields).encode("ascii") + b"\n")


def _bound_memory(most: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
