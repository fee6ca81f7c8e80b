"""ImageLimits and PdfLimits: limits of an image, of a request's images together, and of a PDF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vitrail.arguments import checked


@checked
@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one image, and of all images of a request.

    The defaults are for files of a local user; `untrusted` is for requests of others.

    Attributes:
        max_pixels: of one image, height · width; checked in the file's header, before a pixel is decoded.
        max_aspect: longer over shorter side.
        max_bytes: of one encoded file.
        formats: Pillow's names of the permitted file formats.
        max_frames: of one file; the first frame is the image.
        max_images: of a request, the pages of PDFs included.
        max_total_bytes: encoded, of a request.
        max_total_pixels: decoded one image after the other, of a request.
        max_seconds: for opening and decoding all images of a request.
        max_memory: bytes of a request's prepared batch, and of the decoding process.
        isolated: decode in a worker process, whose time and memory are bounded by the system.
    """

    max_pixels: int = 100_000_000
    max_aspect: float = 1000.0
    max_bytes: int = 512 << 20
    formats: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    max_frames: int = 100_000
    max_images: int = 10_000
    max_total_bytes: int = 4 << 30
    max_total_pixels: int = 20_000_000_000
    max_seconds: float = 600.0
    max_memory: int = 8 << 30
    isolated: bool = False

    @classmethod
    def untrusted(cls) -> ImageLimits:
        """Return limits for untrusted images: small, few, in four formats, decoded in a worker process."""
        return cls(
            max_pixels=40_000_000,
            max_aspect=200.0,
            max_bytes=16 << 20,
            formats=("PNG", "JPEG", "WEBP", "GIF"),
            max_frames=1_000,
            max_images=32,
            max_total_bytes=64 << 20,
            max_total_pixels=160_000_000,
            max_seconds=20.0,
            max_memory=1 << 30,
            isolated=True,
        )


@checked
@dataclass(frozen=True, slots=True)
class PdfLimits:
    """Limits of a PDF, and the resolution of its pages.

    Attributes:
        max_pages: a longer file is an error.
        max_bytes: of the file.
        max_pixels: of one page, height · width; a page that has more at `dpi` gets a lower resolution.
        max_seconds: for all pages together.
        max_memory: bytes of the rendering process (not on Windows).
        dpi: pixels per inch.
        max_aspect: longer over shorter side of a page.
        max_total_pixels: of all pages; where they could have more, each gets an equal share.
    """

    max_pages: int = 50
    max_bytes: int = 256 << 20
    max_pixels: int = 8_000_000
    max_seconds: float = 60.0
    max_memory: int = 4 << 30
    dpi: int = 150
    max_aspect: float = 200.0
    max_total_pixels: int = 128 << 20

    @classmethod
    def untrusted(cls) -> PdfLimits:
        """Return limits for untrusted PDFs."""
        return cls(
            max_pages=20,
            max_bytes=16 << 20,
            max_pixels=4_000_000,
            max_seconds=20.0,
            max_memory=1 << 30,
            max_total_pixels=40_000_000,
        )

    def page_pixels(self, pages: int) -> int:
        """Return the most pixels of one page in a file of `pages` pages."""
        return max(1, min(self.max_pixels, self.max_total_pixels // max(pages, 1)))


LIMITS: Final = ImageLimits()
PDF_LIMITS: Final = PdfLimits()
