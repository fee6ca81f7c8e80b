"""What opening a file would cost beyond its pixels, counted in its structure before a decoder sees it.

A decoder's time and memory follow from the pixels, which `load` checks, but for what a few bytes repeat: scans of a JPEG
that walk all pixels again, tiles far larger than the image, blocks and tags without end, frames.
"""

from __future__ import annotations

import io
import os
import re
import struct
from typing import IO, Final, NoReturn

from vitrail.errors import ImageError
from vitrail.images.limits import LIMITS, ImageLimits

_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # of a JPEG, but stuffed bytes and restarts
_START_OF_SCAN, _END_OF_IMAGE, _EXIF_SEGMENT = 0xDA, 0xD9, 0xE1
_STANDALONE: Final = frozenset({0x01, 0xD8})
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, with the size
_MOST_SCANS: Final = 100
_SCANNED_PIXELS: Final = (
    2_500_000_000  # scans times pixels: 25 scans of the largest image; encoders write about ten
)
_MOST_BLOCKS: Final = 200_000  # chunks, segments, extensions: a few microseconds each
_MOST_EXTENSIONS: Final = 20_000  # of a GIF before its first image
_MOST_SUBBLOCKS: Final = 2_000_000  # of a GIF, up to 255 bytes each
_MOST_PIECES: Final = 500_000  # strips or tiles of a TIFF
_LARGE_TILE: Final = 1 << 22  # pixels of a TIFF's tile that an image of any size may have
_MOST_TAGS: Final = 4_096
_TAG_BYTES: Final = 32 << 20  # values that a TIFF's tags may take beyond the size of the file
_EXIF_BYTES: Final = 4 << 20
_RUN_LENGTH_BYTES: Final = 4 << 20  # of a BMP with run-length coding, which Pillow decodes in Python
_UNITS: Final = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}


def check_size(height: int, width: int, limits: ImageLimits = LIMITS) -> None:
    """Raise ImageError for a size in pixels that the limits exclude."""
    if height < 1 or width < 1:
        raise ImageError(f"The picture has no pixels: its size is {width}×{height} (width×height).")
    if height * width > limits.max_pixels:
        raise ImageError(
            f"The picture has {width}×{height} pixels ({height * width / 1e6:.0f} million); at most "
            f"{limits.max_pixels / 1e6:.0f} million are decoded. Scale it down first."
        )
    if max(height, width) > limits.max_aspect * min(height, width):
        raise ImageError(
            f"The picture has {width}×{height} pixels (width×height): one side is more than "
            f"{limits.max_aspect:g} times the other. Crop it first."
        )


def check_file(file: IO[bytes], limits: ImageLimits) -> None:
    """Raise ImageError for a file that costs more than its pixels say; what is damaged is left to the decoder."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    begin = file.read(32)
    file.seek(0)
    try:
        if begin.startswith(b"\xff\xd8"):
            _check_jpeg(file.read())
        elif begin.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_png(file, limits)
        elif begin.startswith(b"GIF8"):
            _check_gif(file, limits)
        elif begin.startswith(b"RIFF") and begin[8:12] == b"WEBP":
            _check_webp(file, limits)
        elif begin[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            _check_tiff(file, size, limits)
        elif (
            begin.startswith(b"BM") and len(begin) >= 32 and begin[30] in (1, 2) and size > _RUN_LENGTH_BYTES
        ):
            raise ImageError(
                f"The image is a BMP with run-length coding of {size >> 20} MiB; at most {_RUN_LENGTH_BYTES >> 20} MiB "
                "are decoded. Save it as PNG."
            )
    except (struct.error, IndexError):  # cut off within its structure
        return


def _check_jpeg(data: bytes) -> None:
    scans = pixels = blocks = place = 0
    exif: list[bytes] = []
    while (found := _MARKER.search(data, place)) is not None:
        code, place = found[1][0], found.end()
        if code == _END_OF_IMAGE:
            break
        if code in _STANDALONE:
            continue
        blocks += 1
        (length,) = struct.unpack_from(">H", data, place)
        if code in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 3)
            pixels = max(pixels, height * width)
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
        if blocks > _MOST_BLOCKS:
            _refuse_blocks("JPEG", "segments")
    block = b"".join(exif)
    if len(block) > _EXIF_BYTES or (block and not exif_is_sound(block)):
        raise ImageError("The image is a JPEG with too much EXIF data; save it anew without.")


def _check_png(file: IO[bytes], limits: ImageLimits) -> None:
    place = 8
    for _ in range(_MOST_BLOCKS):
        file.seek(place)
        head = file.read(12)
        length, kind = struct.unpack_from(">I4s", head)
        if kind == b"acTL":
            _check_frames(struct.unpack_from(">I", head, 8)[0], limits)
        elif kind == b"IEND":
            return
        place += 12 + length
    _refuse_blocks("PNG", "chunks")


def _check_gif(file: IO[bytes], limits: ImageLimits) -> None:
    """Extensions before the first image, then the number of images."""
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
    """The canvas, for which the decoder makes room as it is opened; then frames and chunks."""
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


def _check_tiff(file: IO[bytes], size: int, limits: ImageLimits) -> None:
    """The tags of the first image, the size of its strips or tiles, and the number of images."""
    directory = _Directory(file, size)
    tags = directory.read(directory.first)
    if directory.data > size + _TAG_BYTES:
        raise ImageError("The image is a TIFF whose tags repeat its data beyond its size; save it anew.")
    width, height = tags.get(256, (1, 0))[1], tags.get(257, (1, 0))[1]
    for name in (273, 324):  # offsets of strips, of tiles
        if tags.get(name, (0, 0))[0] > _MOST_PIECES:
            raise ImageError(
                f"The image is a TIFF of more than {_MOST_PIECES:,} strips or tiles; save it anew."
            )
    if 322 in tags and 323 in tags:
        tile_width, tile_height = tags[322][1], tags[323][1]
        # Tiles are multiples of 16, and stand over at the right and below.
        most = max(_LARGE_TILE, 2 * width * height)
        if tile_width * tile_height > most:
            raise ImageError(
                f"The image is a TIFF of {width}×{height} pixels in tiles of {tile_width}×{tile_height}; at most "
                f"{most / 1e6:.0f} million pixels are decoded for a tile. Save it anew."
            )
    frames, seen = 1, {directory.first}
    while directory.next and directory.next not in seen:
        seen.add(directory.next)
        frames += 1
        _check_frames(frames, limits)
        directory.skip(directory.next)


class _Directory:
    """The directories of tags in a TIFF file, or in a block of EXIF data."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        begin = file.read(16)
        order = "<" if begin.startswith(b"II") else ">"
        self._big = begin[2:4] in (b"+\0", b"\0+")
        self._entry = struct.Struct(order + ("HHQ8s" if self._big else "HHI4s"))
        self._count, self._offset = (struct.Struct(order + code) for code in ("QQ" if self._big else "HI"))
        self._order = order
        (self.first,) = self._offset.unpack_from(begin, 8 if self._big else 4)
        self.next = self.data = 0

    def read(self, place: int) -> dict[int, tuple[int, int]]:
        """tag → (how many values, the value where it is one number); `data`: bytes that all values take."""
        count = self._begin(place)
        if count > _MOST_TAGS:
            raise ImageError(f"The image has a directory of {count:,} tags; at most {_MOST_TAGS:,} are read.")
        entries = self._file.read(count * self._entry.size)
        whole = len(entries) // self._entry.size * self._entry.size
        found: dict[int, tuple[int, int]] = {}
        for tag, kind, number, value in self._entry.iter_unpack(entries[:whole]):
            length = _UNITS.get(kind, 0) * number
            if length > len(value):
                self.data += length
            one = {3: "H", 4: "I", 16: "Q"}.get(kind, "")
            found.setdefault(tag, (number, struct.unpack_from(self._order + one, value)[0] if one else 0))
        self._end()
        return found

    def skip(self, place: int) -> None:
        """Go on to the next directory."""
        count = self._begin(place)
        self._file.seek(count * self._entry.size, os.SEEK_CUR)
        self._end()

    def _begin(self, place: int) -> int:
        self._file.seek(min(place, self._size))
        (count,) = self._count.unpack(self._file.read(self._count.size))
        if count * self._entry.size > self._size:
            raise struct.error("a directory that is cut off")
        return int(count)

    def _end(self) -> None:
        (self.next,) = self._offset.unpack(self._file.read(self._offset.size))


def exif_is_sound(block: bytes) -> bool:
    """Whether the tags of an EXIF block take no more bytes than it has; reading others can take any memory."""
    block = block.removeprefix(b"Exif\0\0")
    try:
        directory = _Directory(io.BytesIO(block), len(block))
        directory.read(directory.first)
    except struct.error:  # cut off: so is what can be read of it
        return True
    except ImageError:
        return False
    return directory.data <= len(block) + _TAG_BYTES


def _check_frames(frames: int, limits: ImageLimits) -> None:
    if frames > limits.max_frames:
        raise ImageError(
            f"The image has more than {limits.max_frames:,} frames, the limit; send one of them."
        )


def _refuse_blocks(kind: str, what: str) -> NoReturn:
    raise ImageError(f"The image is a {kind} with too many {what}; save it anew.")
