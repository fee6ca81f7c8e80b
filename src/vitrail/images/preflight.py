"""Checks of a file's structure for costs beyond its pixels, before a decoder opens it.

A decoder's time and memory follow from the pixels, which load.py checks, except for content that a few bytes repeat:
scans of a JPEG that walk all pixels again, tiles far larger than the image, blocks and tags without end, frames.
"""

from __future__ import annotations

import io
import os
import re
import struct
from typing import IO, Final, NoReturn

from vitrail.errors import ImageError
from vitrail.images.limits import LIMITS, ImageLimits
from vitrail.images.tiff_tags import check_tiff, exif_is_sound

_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # of a JPEG, except stuffed bytes and restarts
_START_OF_SCAN, _END_OF_IMAGE, _EXIF_SEGMENT = 0xDA, 0xD9, 0xE1
_STANDALONE: Final = frozenset({0x01, 0xD8})
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, with the size
_MOST_SCANS: Final = 100
# Scans times pixels: 25 scans of the largest image; encoders write about ten.
_SCANNED_PIXELS: Final = 2_500_000_000
_MOST_BLOCKS: Final = 200_000  # chunks, segments, extensions: a few microseconds each
_HEADER_BYTES: Final = 32 << 20  # of a JPEG before its first scan
_SKIPPED_BYTES: Final = 1 << 20  # there, outside of segments: Pillow steps through them one by one
_MOST_PROFILES: Final = 10  # of a PNG; one is legal, but Pillow unpacks each, up to 1 MiB
_MOST_EXTENSIONS: Final = 20_000  # of a GIF before its first image
_MOST_SUBBLOCKS: Final = 2_000_000  # of a GIF, up to 255 bytes each
_EXIF_BYTES: Final = 4 << 20
_RUN_LENGTH_BYTES: Final = 4 << 20  # of a BMP with run-length coding, which Pillow decodes in Python


def check_size(height: int, width: int, limits: ImageLimits = LIMITS) -> None:
    """Raise ImageError for a size in pixels outside the limits."""
    if height < 1 or width < 1:
        raise ImageError(f"The image has no pixels: its size is {width}×{height} (width×height).")
    if height * width > limits.max_pixels:
        raise ImageError(
            f"The image has {width}×{height} pixels ({height * width / 1e6:.0f} million); at most "
            f"{limits.max_pixels / 1e6:.0f} million are decoded. Scale it down first."
        )
    if max(height, width) > limits.max_aspect * min(height, width):
        raise ImageError(
            f"The image has {width}×{height} pixels (width×height): one side is more than "
            f"{limits.max_aspect:g} times the other. Crop it first."
        )


def check_file(file: IO[bytes], limits: ImageLimits) -> None:
    """Raise ImageError for a file that costs more than its pixels suggest; damage is left to the decoder."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    begin = file.read(32)
    file.seek(0)
    try:
        if begin.startswith(b"\xff\xd8"):
            _check_jpeg(file.read(), limits)
        elif begin.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_png(file, limits)
        elif begin.startswith(b"GIF8"):
            _check_gif(file, limits)
        elif begin.startswith(b"RIFF") and begin[8:12] == b"WEBP":
            _check_webp(file, limits)
        elif begin[:2] in (b"II", b"MM"):
            _check_frames(check_tiff(file, size, _SCANNED_PIXELS).directories(limits.max_frames), limits)
        elif (
            begin.startswith(b"BM") and len(begin) >= 32 and begin[30] in (1, 2) and size > _RUN_LENGTH_BYTES
        ):
            raise ImageError(
                f"The image is a BMP with run-length coding of {size >> 20} MiB; at most {_RUN_LENGTH_BYTES >> 20} MiB "
                "are decoded. Save it as PNG."
            )
    except (struct.error, IndexError):  # cut off within its structure
        return


def _check_jpeg(data: bytes, limits: ImageLimits) -> None:
    scans = pixels = blocks = place = skipped = 0
    exif: list[bytes] = []
    while (found := _MARKER.search(data, place)) is not None:
        if not scans:
            skipped += found.start() - place
        code, place = found[1][0], found.end()
        if code == _END_OF_IMAGE:
            break
        if code in _STANDALONE:
            continue
        blocks += 1
        head = data[place : place + 7]
        if len(head) < 7:  # nothing follows
            break
        (length,) = struct.unpack_from(">H", head)
        if code in _FRAMES:
            height, width = struct.unpack_from(">HH", head, 3)
            pixels = max(pixels, height * width)
            if pixels > limits.max_pixels:
                check_size(height, width, limits)
        elif code == _START_OF_SCAN:
            scans += 1
        elif code == _EXIF_SEGMENT and data[place + 2 : place + 8] == b"Exif\0\0":
            exif.append(data[place + 8 : place + length])
        place += max(length, 2)
        if scans > _MOST_SCANS or scans * pixels > _SCANNED_PIXELS:
            raise ImageError(
                f"The image is a JPEG with more than {scans - 1} scans, each of which decodes its {pixels / 1e6:.1f} "
                "million pixels again; save it anew."
            )
        if blocks > _MOST_BLOCKS or (not scans and place > _HEADER_BYTES):
            _refuse_blocks("JPEG", "segments")
    if not scans:
        skipped += max(len(data) - place, 0) if found is None else 0
    if skipped > _SKIPPED_BYTES:
        _refuse_blocks("JPEG", "fill bytes")
    block = b"".join(exif)
    if len(block) > _EXIF_BYTES or (block and not exif_is_sound(block)):
        raise ImageError("The image is a JPEG with too much EXIF data; save it anew without.")


def _check_png(file: IO[bytes], limits: ImageLimits) -> None:
    place, profiles = 8, 0
    for _ in range(_MOST_BLOCKS):
        file.seek(place)
        head = file.read(12)
        length, kind = struct.unpack_from(">I4s", head)
        if kind == b"acTL":
            _check_frames(struct.unpack_from(">I", head, 8)[0], limits)
        elif kind == b"iCCP":
            profiles += 1
            if profiles > _MOST_PROFILES:
                _refuse_blocks("PNG", "colour profiles")
        elif kind == b"IEND":
            return
        place += 12 + length
    _refuse_blocks("PNG", "chunks")


def _check_gif(file: IO[bytes], limits: ImageLimits) -> None:
    """Count the extensions before the first image, then the images."""
    head = file.read(13)
    file.seek(3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0, os.SEEK_CUR)
    frames = extensions = blocks = 0
    while (kind := file.read(1)) not in (b"", b";"):
        if kind == b"!":
            file.seek(1, os.SEEK_CUR)
        elif kind == b",":
            frames += 1
            _check_frames(frames, limits)
            flags = file.read(9)[8]
            file.seek((3 << ((flags & 7) + 1) if flags & 0x80 else 0) + 1, os.SEEK_CUR)
        before = blocks
        while kind in (b"!", b",") and (length := file.read(1)) not in (b"", b"\0"):
            blocks += 1
            file.seek(length[0], os.SEEK_CUR)
            if blocks > _MOST_SUBBLOCKS:
                _refuse_blocks("GIF", "blocks")
        extensions += 0 if kind == b"," else blocks - before + 1
        if extensions > _MOST_EXTENSIONS + 10 * frames:
            _refuse_blocks("GIF", "extensions")


def _check_webp(file: IO[bytes], limits: ImageLimits) -> None:
    """Check the canvas, which the decoder allocates on opening; then count frames and chunks."""
    begin = file.read(30)
    kind = begin[12:16]
    width = height = 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(begin[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", begin, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", begin, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    check_size(height, width, limits)
    place, frames = 12, 0
    for _ in range(_MOST_BLOCKS):
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        frames += name == b"ANMF"
        _check_frames(frames, limits)
        place += 8 + length + (length & 1)
    _refuse_blocks("WebP", "chunks")


def _check_frames(frames: int, limits: ImageLimits) -> None:
    if frames > limits.max_frames:
        raise ImageError(
            f"The image has more than {limits.max_frames:,} frames, the limit; send one of them."
        )


def _refuse_blocks(kind: str, what: str) -> NoReturn:
    raise ImageError(f"The image is a {kind} with too many {what}; save it anew.")
