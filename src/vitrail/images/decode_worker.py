"""The process that decodes images which strangers sent; isolated.py sends them and checks the answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

from vitrail.errors import ImageError
from vitrail.images.isolated import FAULT, HEAD, PIXELS, SIZE
from vitrail.images.limits import ImageLimits
from vitrail.images.load import decode


def serve(receive: Callable[[], bytes], send: Callable[[bytes], None]) -> None:
    """Answer each image with its size, then its pixels, or with a fault."""
    while True:
        asked = json.loads(receive())
        limits = ImageLimits(**{**asked["limits"], "formats": tuple(asked["limits"]["formats"])})
        encoded = receive()

        def measured(height: int, width: int) -> None:
            send(HEAD.pack(SIZE, width, height))

        try:
            image = decode(io.BytesIO(encoded), str(asked["subject"]), limits, measured)
            pixels = image.tobytes()
        except ImageError as error:
            send(HEAD.pack(FAULT, 0, 0) + str(error).encode("utf-8", "replace")[:1500])
            continue
        send(HEAD.pack(PIXELS, *image.size))
        send(pixels)
