"""ImageRequest: limits and use of the images of one request, and their permitted sources."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vitrail.arguments import checked
from vitrail.errors import ImageError
from vitrail.images.fetch import FetchPolicy
from vitrail.images.limits import LIMITS, PDF_LIMITS, ImageLimits, PdfLimits

POLICY = FetchPolicy()


@dataclass
class _Used:
    """Amounts used of a request's limits."""

    images: int = 0
    bytes: int = 0
    pixels: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0
    lock: Any = field(default_factory=threading.RLock)


class ImageRequest:
    """The images of one request: their limits, and the amounts used."""

    def __init__(
        self,
        limits: ImageLimits = LIMITS,
        policy: FetchPolicy = POLICY,
        pdf_limits: PdfLimits = PDF_LIMITS,
        used: _Used | None = None,
    ) -> None:
        self.limits, self.policy, self.pdf_limits = limits, policy, pdf_limits
        self._used = _Used() if used is None else used

    def count_image(self, height: int, width: int) -> None:
        """Count an image before it is decoded; raise ImageError beyond the request's limits."""
        limits = self.limits
        with self._used.lock:
            self._used.images += 1
            self._used.pixels += height * width
            if self._used.images > limits.max_images:
                raise ImageError(
                    f"A request opens at most {limits.max_images:,} images, pages of PDFs included; give fewer at a time."
                )
            if self._used.pixels > limits.max_total_pixels:
                raise ImageError(
                    f"The images of this request have more than {limits.max_total_pixels / 1e6:,.0f} million pixels "
                    "together, the limit; give fewer at a time, or scale them down."
                )

    def count_page(self, height: int, width: int) -> None:
        """Count a page of a PDF, which is kept at this size; raise ImageError beyond the request's limits."""
        self.count_image(height, width)
        self.count_kept(height, width, "pages of this request's PDFs")

    def count_kept(self, height: int, width: int, what: str) -> None:
        """Count the memory of an image that is kept at this size; `what`: the images in the error message."""
        most = self.limits.max_memory // 4
        with self._used.lock:
            self._used.kept_bytes += 4 * height * width  # as in PIL
            if self._used.kept_bytes > most:
                raise ImageError(
                    f"The {what} take more than {most / (1 << 30):.3g} GiB, the limit; give fewer at a time."
                )

    def check_batch(self, images: int, height: int, width: int, itemsize: int) -> None:
        """Raise ImageError for a batch of images, all padded to (height, width), that takes too much memory."""
        size = images * 3 * height * width * itemsize
        if size > self.limits.max_memory:
            raise ImageError(
                f"{images:,} images padded to the largest, {width}×{height} pixels, take {size / (1 << 30):.1f} GiB; at "
                f"most {self.limits.max_memory / (1 << 30):.3g} GiB are prepared at once. Give fewer at a time."
            )

    def count_bytes(self, size: int) -> None:
        """Count an encoded file; raise ImageError beyond the request's limits."""
        with self._used.lock:
            self._used.bytes += size
            if self._used.bytes > self.limits.max_total_bytes:
                raise ImageError(
                    f"The files of this request's images have more than {self.limits.max_total_bytes >> 20:,} MiB "
                    "together, the limit; give fewer at a time."
                )

    def seconds_left(self) -> float:
        """Return the time left for opening and decoding; raise ImageError if there is none."""
        left = self.limits.max_seconds - self._used.seconds
        if left <= 0:
            raise ImageError(
                f"The images of this request took longer than {self.limits.max_seconds:g} s to open, the limit; "
                "give fewer at a time, or scale them down."
            )
        return left

    @contextmanager
    def timed(self) -> Iterator[float]:
        """Count the time of one opening; yield the seconds left for it."""
        left = self.seconds_left()
        began = time.monotonic()
        try:
            yield left
        finally:
            with self._used.lock:
                self._used.seconds += time.monotonic() - began


_current: ContextVar[ImageRequest | None] = ContextVar("vitrail_image_request", default=None)
_defaults: tuple[ImageLimits, FetchPolicy, PdfLimits] = (LIMITS, POLICY, PDF_LIMITS)


@checked
def set_image_defaults(
    limits: ImageLimits = LIMITS, policy: FetchPolicy = POLICY, pdf_limits: PdfLimits = PDF_LIMITS
) -> None:
    """Set the defaults of this process, in every thread, for code outside of any `image_request`."""
    global _defaults
    _defaults = (limits, policy, pdf_limits)


@contextmanager
def own_image_request() -> Iterator[ImageRequest]:
    """Open a block with the limits and policy of the surrounding one but its own count: one conversation of many."""
    with image_request() as around, image_request(around.limits) as request:
        yield request


@checked
@contextmanager
def image_request(
    limits: ImageLimits | None = None,
    policy: FetchPolicy | None = None,
    pdf_limits: PdfLimits | None = None,
) -> Iterator[ImageRequest]:
    """Open a block whose images share one policy and one count, from whatever source.

    Inside another block, arguments that are None come from that one, and the count is shared unless `limits` is given.
    A thread started inside belongs to the block only with a copy of its context (contextvars).

    Args:
        limits: of the images together.
        policy: permitted sources.
        pdf_limits: of each PDF.
    """
    around = _current.get()
    if around is None:
        around, joined = ImageRequest(*_defaults), False
    else:
        joined = limits is None
    request = ImageRequest(
        limits or around.limits,
        policy or around.policy,
        pdf_limits or around.pdf_limits,
        around._used if joined else None,
    )
    token = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(token)
