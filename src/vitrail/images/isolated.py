"""Decoding in a process of its own: what goes to it, and what comes back, checked. The process: decode_worker.py."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import Final

from vitrail.errors import ImageError
from vitrail.images.limits import ImageLimits
from vitrail.images.request import ImageRequest

HEAD: Final = struct.Struct(">4sII")  # what it is, width, height
SIZE, PIXELS, FAULT = b"SIZE", b"RGB8", b"FAIL"
_LONGEST_FAULT: Final = 2000


def decode_apart(encoded: bytes, subject: str, request: ImageRequest) -> tuple[int, int, bytes]:
    """(width, height, RGB bytes) of an encoded image, upright, as the process gives them.

    Raises ImageError for its faults, and where it ends, takes too long or answers what it may not.
    """
    limits = request.limits
    with request.decoder() as worker, worker.until(request.seconds_left()):
        try:
            worker.send(json.dumps({"subject": subject, "limits": asdict(limits)}).encode("ascii"))
            worker.send(encoded)
            width, height = _read_head(worker.receive(HEAD.size + _LONGEST_FAULT), SIZE, limits)
            try:
                request.count_image(height, width)
            except ImageError:
                request.end_decoder()  # the pixels would follow
                raise
            turned = _read_head(worker.receive(HEAD.size + _LONGEST_FAULT), PIXELS, limits)
            if turned not in ((width, height), (height, width)):
                raise EOFError
            pixels = worker.receive(width * height * 3)
            if len(pixels) != width * height * 3:
                raise EOFError
        except EOFError as error:
            if worker.expired:
                raise ImageError(
                    f"{subject} an image that is not decoded within {limits.max_seconds:g} s, the limit of a request."
                ) from error
            request.end_decoder()
            raise ImageError(
                f"{subject} an image that cannot be decoded with {limits.max_memory >> 20} MiB of memory, or a damaged "
                "one: its decoder ended."
            ) from error
    return (*turned, pixels)


def _read_head(frame: bytes, wanted: bytes, limits: ImageLimits) -> tuple[int, int]:
    if len(frame) < HEAD.size:
        raise EOFError
    kind, width, height = HEAD.unpack_from(frame)
    if kind == FAULT:
        text = frame[HEAD.size :].decode("utf-8", "replace")
        raise ImageError("".join(c if c.isprintable() else "�" for c in text) or "The image is damaged.")
    small = 0 < width * height <= limits.max_pixels
    if kind != wanted or len(frame) != HEAD.size or not small:
        raise EOFError
    return width, height
