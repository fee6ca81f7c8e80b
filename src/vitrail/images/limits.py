"""What images may cost, each and those of a request together (ImageLimits), and a PDF (PdfLimits). Checks nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vitrail.arguments import checked


@checked
@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be, and what the images of one request may cost together.

    The defaults are for files of the person at this machine; `untrusted` is for what strangers send.

    Attributes:
        max_pixels: of one image, height · width; checked in the file's header, before a pixel is decoded.
        max_aspect: longer over shorter side.
        max_bytes: of one encoded file.
        formats: Pillow's names of the file formats that are opened at all.
        max_frames: of one file; the first frame is the image.
        max_images: of a request, the pages of PDFs included.
        max_total_bytes: encoded, of a request.
        max_total_pixels: decoded one image after the other, of a request.
        max_seconds: for opening and decoding all images of a request.
        max_memory: bytes that the prepared batch of a request may take, and that the decoding process may use.
        isolated: decode in a process of its own, whose time and memory are bounded by the system.
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
        """Limits for images that strangers send: small, few, in four formats, decoded in a process of its own."""
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
    """What a PDF may be, and how its pages are rendered.

    Attributes:
        max_pages: a longer file is refused.
        max_bytes: of the file.
        max_pixels: of one page, height · width; a page that has more at `dpi` is rendered coarser.
        max_seconds: for all pages together.
        max_memory: bytes of the process that renders (not on Windows).
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
        """Limits for PDFs that strangers send."""
        return cls(
            max_pages=20,
            max_bytes=16 << 20,
            max_pixels=4_000_000,
            max_seconds=20.0,
            max_memory=1 << 30,
            max_total_pixels=40_000_000,
        )

    def page_pixels(self, pages: int) -> int:
        """The most pixels of one page of a file with so many."""
        return max(1, min(self.max_pixels, self.max_total_pixels // max(pages, 1)))


LIMITS: Final = ImageLimits()
PDF_LIMITS: Final = PdfLimits()
