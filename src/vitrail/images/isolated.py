"""Decoding of untrusted images in a worker process (decode_worker.py): requests, and checked answers."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import asdict
from typing import Final

from vitrail.errors import ImageError
from vitrail.files.worker_pool import WorkerPool
from vitrail.files.worker_process import WorkerEndedError
from vitrail.images.limits import ImageLimits
from vitrail.images.request import ImageRequest

LENGTH: Final = struct.Struct(">I")  # of the JSON before an encoded image
HEAD: Final = struct.Struct(">4sII")  # kind, width, height
SIZE, PIXELS, FAULT = b"SIZE", b"RGB8", b"FAIL"
_LONGEST_FAULT: Final = 2000
_decoders = WorkerPool(
    "vitrail.images.decode_worker",
    ("PIL", "numpy"),
    answer_bytes=HEAD.size + _LONGEST_FAULT,
    work="images of strangers (ImageLimits.isolated) are decoded",
    advice="let this program start processes, or decode in this one (isolated=False)",
)


def decode_apart(encoded: bytes, subject: str, request: ImageRequest) -> tuple[int, int, bytes]:
    """Decode an image in a worker process, upright and in RGB.

    Two requests, so that the image is counted before a pixel is decoded.

    Args:
        encoded: content of the image's file.
        subject: beginning of error messages.
        request: its limits hold, and count the image.

    Returns:
        Width, height and RGB bytes.

    Raises:
        ImageError: the image is damaged, or the process ends, takes too long or gives an invalid answer.
        UnsupportedError: no process can be started.
    """
    limits = request.limits
    until = time.monotonic() + request.seconds_left()
    asked = json.dumps({"subject": subject, "limits": asdict(limits)}).encode("ascii")
    with _decoders.worker() as worker:

        def ask(data: bytes, most: int) -> bytes:
            seconds = until - time.monotonic()
            if seconds <= 0:
                raise WorkerEndedError(True, 0)
            return worker.ask(data, seconds, memory=limits.max_memory, answer_bytes=HEAD.size + most)

        try:
            answer = ask(LENGTH.pack(len(asked)) + asked + encoded, _LONGEST_FAULT)
            width, height = _read_head(answer, SIZE, 0, limits)
            request.count_image(height, width)
            size = width * height * 3
            answer = ask(b"", max(size, _LONGEST_FAULT))
            turned = _read_head(answer, PIXELS, size, limits)
            if turned not in ((width, height), (height, width)):
                raise EOFError
        except (EOFError, WorkerEndedError) as error:
            worker.stop()
            if isinstance(error, WorkerEndedError) and error.timed_out:
                raise ImageError(
                    f"{subject} an image that is not decoded within {limits.max_seconds:g} s, the limit of a request."
                ) from error
            raise ImageError(
                f"{subject} an image that cannot be decoded with {limits.max_memory >> 20} MiB of memory, or a damaged "
                "one: its decoder ended."
            ) from error
    return (*turned, answer[HEAD.size :])


def _read_head(answer: bytes, wanted: bytes, pixels: int, limits: ImageLimits) -> tuple[int, int]:
    """Return (width, height) of an answer with `pixels` bytes; raise ImageError for a fault, EOFError if invalid."""
    if len(answer) < HEAD.size:
        raise EOFError
    kind, width, height = HEAD.unpack_from(answer)
    if kind == FAULT:
        text = answer[HEAD.size : HEAD.size + _LONGEST_FAULT].decode("utf-8", "replace")
        raise ImageError("".join(c if c.isprintable() else "�" for c in text) or "The image is damaged.")
    small = 0 < width * height <= limits.max_pixels
    if kind != wanted or len(answer) != HEAD.size + pixels or not small:
        raise EOFError
    return width, height
