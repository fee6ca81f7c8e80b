"""Opening of images and PDFs named on the command line, before a model is loaded; '-' is standard input."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vitrail.errors import ImageError, InputError
from vitrail.images.request import image_request

if TYPE_CHECKING:
    from vitrail.images.load import PilImage
    from vitrail.images.pdf import PdfLimits

STDIN = "-"
_KEPT_PIXELS: Final = 100_000_000


def split_words(words: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Split into images and the question, the last word. Raises InputError if the question seems missing."""
    if not words:
        raise InputError("a question is missing; write: vitrail ask IMAGE… QUESTION")
    *images, question = words
    if question == STDIN or (len(words) == 1 and _names_a_file(question)):
        raise InputError(f'a question is missing; write: vitrail ask {" ".join(words)} "What does it say?"')
    if not question.strip():
        raise InputError("the question is empty; write it after the images, in quotes")
    if not all(name.strip() for name in images):
        raise InputError("an image's name is empty")
    if images.count(STDIN) > 1:
        raise InputError("'-' stands for standard input and can be given once")
    return tuple(images), question


def open_image(name: str) -> "PilImage":
    """Open the image at a path or URL, or on standard input. Raises ImageError."""
    from vitrail.images.load import load_image

    return load_image(_standard_input() if name == STDIN else name)


def open_pages(
    name: str, limits: "PdfLimits | None" = None, say: Callable[[str], None] | None = None
) -> "list[PilImage]":
    """Open the pages of a PDF, or the one image. `say` is called with a status line for each rendered page."""
    from vitrail.images.pdf import load_pages

    def progress(done: int, total: int) -> None:
        if say is not None:
            say(f"rendering page {done} of {total}")

    source = _standard_input() if name == STDIN else name
    return load_pages(source, limits=limits, progress=progress)


@image_request()
def open_parts(
    names: Sequence[str], limits: "PdfLimits | None" = None, say: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Return the content parts of files, all opened, so that errors come before a model is loaded.

    Images stay in memory up to a total number of pixels; beyond it local files are opened again when used.
    """
    from vitrail.images.pdf import file_holds_pdf

    parts: list[dict[str, Any]] = []
    kept = 0
    for name in names:
        pages = open_pages(name, limits, say)
        pixels = sum(page.width * page.height for page in pages)
        path = Path(name)
        if kept + pixels > _KEPT_PIXELS and name != STDIN and path.is_file() and not file_holds_pdf(path):
            parts.append({"type": "image", "path": name})
        else:
            kept += pixels
            parts += [{"type": "image", "image": page} for page in pages]
    return parts


def _standard_input() -> bytes:
    """Read standard input up to one byte more than the limit of images, which is refused later."""
    from vitrail.images.load import LIMITS

    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("'-' reads an image from standard input, which is a terminal or closed; pipe one in")
    data = sys.stdin.buffer.read(LIMITS.max_bytes + 1)
    if not data:
        raise ImageError("standard input is empty; pipe an image in")
    return data


def _names_a_file(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # a question too long for a file name
        return False
