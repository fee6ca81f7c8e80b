"""Files → what each says: opened one after the other, a PDF's pages in order, what cannot be opened told. No processes."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vitrail.errors import ImageError, InputError, MissingPackageError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What counts as an image inside a folder; a file that is named is opened whatever its name."""

PAGE_PIXELS = 2_000_000
"""Of a PDF's page, at most; the reader shrinks whatever is longer than 512 pixels."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one image says.

    Attributes:
        text: its lines, separated by newlines; empty where nothing was found.
        confidence: the probability, 0 to 1, of the character that the reader was least sure of.
        seconds: this image's share of its batch.
    """

    text: str
    confidence: float
    seconds: float


@dataclass(frozen=True, slots=True)
class FileReading:
    """What one file says.

    Attributes:
        pages: a reading of each page, one for an image; empty where the file could not be opened.
        paged: whether it is a PDF.
        error: why it could not be opened, else None.
    """

    pages: tuple[Reading, ...] = ()
    paged: bool = False
    error: str | None = None

    @property
    def text(self) -> str:
        """The text of all pages, one after the other."""
        return "\n".join(page.text for page in self.pages)


class Reader(Protocol):
    """What reads images; BatchReader does."""

    def read(self, images: Iterable[Image]) -> Iterator[Reading]:
        """A reading of each image, in order."""


def find_images(names: Sequence[str]) -> list[str]:
    """Files that the names stand for, each once, in order; folders are searched to the bottom.

    Raises:
        InputError: a name that stands for nothing.
    """
    found: dict[str, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"the folder {name} has no images ({', '.join(sorted(SUFFIXES))})")
        elif glob.has_magic(name) and not path.exists():
            inside = sorted(p for p in glob.glob(name, recursive=True) if Path(p).is_file())
            if not inside:
                raise InputError(f"no file fits {name}")
        else:
            inside = [name]  # a file, a URL, or '-'; opening it raises what is wrong
        found |= dict.fromkeys(inside)
    return list(found)


def open_file(name: str) -> list[Image]:
    """The image at a path or URL, or the pages of a PDF, which is told by its name.

    A file is a request of its own (`image_request`), unless a block is around the call.

    Raises:
        ImageError: it cannot be opened. MissingPackageError: a PDF, without the extra `pdf`. UnsupportedError: a process
            that it needs cannot be started.
    """
    from vitrail.images.load import load_image
    from vitrail.images.pdf import load_pages, names_pdf
    from vitrail.images.request import image_request

    with image_request() as request:
        if not names_pdf(name):
            return [load_image(name)]
        limits = request.pdf_limits
        return load_pages(name, limits=replace(limits, max_pixels=min(limits.max_pixels, PAGE_PIXELS)))


def read_files(
    reader: Reader, names: Sequence[str], opener: Callable[[str], list[Image]] = open_file
) -> Iterator[FileReading]:
    """What each file says, in their order; files are opened while the reader asks for images."""
    from vitrail.images.pdf import names_pdf

    opened: deque[tuple[int, FileReading]] = deque()  # images to come, and what is known before

    def images() -> Iterator[Image]:
        for name in names:
            try:
                pages = opener(name)
            except (ImageError, MissingPackageError, UnsupportedError) as error:
                opened.append((0, FileReading(error=str(error))))
                continue
            opened.append((len(pages), FileReading(paged=names_pdf(name))))
            yield from pages

    readings = reader.read(images())
    for first in readings:
        while not opened[0][0]:
            yield opened.popleft()[1]
        count, file = opened.popleft()
        yield FileReading((first, *islice(readings, count - 1)), file.paged)
    for _, file in opened:
        yield file
