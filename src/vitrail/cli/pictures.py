"""Pictures and PDFs named on the command line, opened and checked before a model is loaded; '-' is standard input."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import ImageError, InputError

if TYPE_CHECKING:
    from vitrail.images.load import PilImage
    from vitrail.images.pdf import PdfLimits

STDIN = "-"


def split_words(words: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Pictures and the question, which comes last; InputError when the question seems to be forgotten."""
    if not words:
        raise InputError("a question is missing; write: vitrail ask PICTURE… QUESTION")
    *pictures, question = words
    if question == STDIN or (len(words) == 1 and _names_a_file(question)):
        raise InputError(f'a question is missing; write: vitrail ask {" ".join(words)} "What does it say?"')
    if not question.strip():
        raise InputError("the question is empty; write it after the pictures, in quotes")
    if pictures.count(STDIN) > 1:
        raise InputError("'-' stands for standard input and can be given once")
    return tuple(pictures), question


def open_picture(name: str) -> "PilImage":
    """The picture at a path or URL, or on standard input; ImageError says what is wrong with it."""
    from vitrail.images.load import load_image

    return load_image(_standard_input() if name == STDIN else name)


def open_pages(
    name: str, limits: "PdfLimits | None" = None, say: Callable[[str], None] | None = None
) -> "list[PilImage]":
    """The same for a file that may be a PDF: its pages, else the one picture. `say` hears which page is rendered."""
    from vitrail.images.pdf import PDF_LIMITS, load_pages

    def progress(done: int, total: int) -> None:
        if say is not None:
            say(f"rendering page {done} of {total}")

    source = _standard_input() if name == STDIN else name
    return load_pages(source, limits=limits or PDF_LIMITS, progress=progress)


def _standard_input() -> bytes:
    """All of it, as far as a picture may go, and one byte more, which is refused later."""
    from vitrail.images.load import LIMITS

    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            "'-' reads a picture from standard input, which is a terminal or closed; pipe one in"
        )
    data = sys.stdin.buffer.read(LIMITS.max_bytes + 1)
    if not data:
        raise ImageError("standard input is empty; pipe a picture in")
    return data


def _names_a_file(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # a question may be too long for a file name
        return False
