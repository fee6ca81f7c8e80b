"""Worker process that decodes untrusted images; isolated.py sends them and checks the answers."""

from __future__ import annotations

import io
import json

from vitrail.errors import ImageError
from vitrail.files.worker_process import serve
from vitrail.images.isolated import FAULT, HEAD, LENGTH, PIXELS, SIZE
from vitrail.images.limits import ImageLimits
from vitrail.images.load import PilImage, decode, read_header


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    serve(Decoder().answer)


class Decoder:
    """Decode one image in two requests: an encoded image → its size; then an empty request → its pixels."""

    def __init__(self) -> None:
        self._opened: tuple[PilImage, str, ImageLimits] | None = None

    def answer(self, request: bytes) -> bytes:
        """Return a head, with pixels or a fault behind it. A MemoryError ends the process, whose state it spoils."""
        try:
            return self._pixels() if not request else self._size(request)
        except ImageError as error:
            return HEAD.pack(FAULT, 0, 0) + str(error).encode("utf-8", "replace")[:1500]

    def _size(self, request: bytes) -> bytes:
        self._opened = None
        begin = LENGTH.size + LENGTH.unpack_from(request)[0]
        asked = json.loads(request[LENGTH.size : begin])
        limits = ImageLimits(**{**asked["limits"], "formats": tuple(asked["limits"]["formats"])})
        subject = str(asked["subject"])
        image = read_header(io.BytesIO(request[begin:]), subject, limits)
        self._opened = image, subject, limits
        return HEAD.pack(SIZE, *image.size)

    def _pixels(self) -> bytes:
        if self._opened is None:
            raise EOFError  # nothing was opened
        opened, self._opened = self._opened, None
        image = decode(*opened)
        return HEAD.pack(PIXELS, *image.size) + image.tobytes()
