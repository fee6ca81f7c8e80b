"""Read the text of files one after another: images, and PDFs page by page; a file that cannot be opened gives an error."""

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
"""Suffixes of images inside a folder; a file given by name is opened whatever its suffix."""

PAGE_PIXELS = 2_000_000
"""Maximum size of a rendered PDF page; the model shrinks anything longer than 512 pixels."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Text read from one image.

    Attributes:
        text: lines separated by newlines; empty if nothing was found.
        confidence: probability, 0 to 1, of the least certain character.
        seconds: this image's share of its batch's time.
    """

    text: str
    confidence: float
    seconds: float


@dataclass(frozen=True, slots=True)
class FileReading:
    """Text read from one file.

    Attributes:
        pages: one reading per page, one for an image; empty if the file could not be opened.
        paged: whether the file is a PDF.
        error: why the file could not be opened, or None.
    """

    pages: tuple[Reading, ...] = ()
    paged: bool = False
    error: str | None = None

    @property
    def text(self) -> str:
        """The text of all pages, in order."""
        return "\n".join(page.text for page in self.pages)


class Reader(Protocol):
    """Protocol of a model that reads images; implemented by BatchReader."""

    def read(self, images: Iterable[Image]) -> Iterator[Reading]:
        """Yield a reading of each image, in order."""


def find_images(names: Sequence[str]) -> list[str]:
    """Expand names to files, each once, in order; folders are searched recursively.

    Raises:
        InputError: a name matches nothing.
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
            inside = [name]  # a file, a URL, or '-'; errors are raised on opening
        found |= dict.fromkeys(inside)
    return list(found)


def open_file(name: str) -> list[Image]:
    """Open the image at a path or URL, or the pages of a PDF (recognised by its name).

    A file is a request of its own (`image_request`), unless a block is around the call.

    Raises:
        ImageError: the file cannot be opened.
        MissingPackageError: a PDF, without the extra `pdf`.
        UnsupportedError: a worker process cannot be started.
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
    """Yield the reading of each file, in order; files are opened lazily, as the reader consumes images."""
    from vitrail.images.pdf import names_pdf

    opened: deque[tuple[int, FileReading]] = deque()  # files whose images are still to be read

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
