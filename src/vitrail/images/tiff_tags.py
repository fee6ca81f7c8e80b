"""TiffDirectory: tags of TIFF files and EXIF blocks, and checks of the cost to read and decode them.

Tags are read as Pillow and libtiff read them; a file that the two could read differently is an error.
"""

from __future__ import annotations

import io
import os
import struct
from typing import IO, Final

from vitrail.errors import ImageError

WIDTH, HEIGHT, COMPRESSION, TILE_WIDTH, TILE_HEIGHT = 256, 257, 259, 322, 323
STRIPS, STRIP_BYTES, TILES, TILE_BYTES = (
    273,
    279,
    324,
    325,
)  # offsets and lengths of strips and tiles
_SIZES: Final = frozenset({WIDTH, HEIGHT, COMPRESSION, TILE_WIDTH, TILE_HEIGHT})
_ONCE: Final = _SIZES | {STRIPS, STRIP_BYTES, TILES, TILE_BYTES}
_JPEG: Final = (6, 7)  # kinds of compression
_MOST_PIECES: Final = 500_000  # strips or tiles
_LARGE_TILE: Final = 1 << 22  # pixels of a tile, whatever the image's size
_MOST_TAGS: Final = 4_096
_TAG_BYTES: Final = 32 << 20  # bytes of values beyond the size of the file
_WHOLE: Final = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of one number without sign
# Bytes of a value, by its type.
_UNITS: Final = dict(
    zip((*range(1, 14), 16, 17, 18), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8), strict=True)
)


class TiffDirectory:
    """First directory of tags in a file that begins as TIFF does.

    Attributes:
        tags: tag → (type, number of values, their bytes or their offset).
        data: bytes of all values stored elsewhere in the file.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        begin = file.read(16)
        self._order = "<" if begin.startswith(b"II") else ">"
        self._big = begin[2:3] == b"+"
        self._entry = struct.Struct(self._order + ("HHQ8s" if self._big else "HHI4s"))
        self._count, self._offset = (
            struct.Struct(self._order + code) for code in ("QQ" if self._big else "HI")
        )
        (self._first,) = self._offset.unpack_from(begin, 8 if self._big else 4)
        self.data = 0
        self.tags: dict[int, tuple[int, int, bytes]] = {}
        self._read()

    def _read(self) -> None:
        count = self._begin(self._first)
        if count > _MOST_TAGS:
            raise ImageError(f"The image has a directory of {count:,} tags; at most {_MOST_TAGS:,} are read.")
        entries = self._file.read(count * self._entry.size)
        whole = len(entries) // self._entry.size * self._entry.size
        for tag, kind, number, value in self._entry.iter_unpack(entries[:whole]):
            length = _UNITS.get(kind, 0) * number
            if length > len(value):
                self.data += length
            if tag in self.tags and tag in _ONCE:
                raise ImageError(f"The image is a TIFF that has its tag {tag} twice; save it anew.")
            self.tags.setdefault(tag, (kind, number, value))

    def number(self, tag: int) -> int:
        """Return the value of a tag that is one whole number, 0 if missing; raise ImageError for anything else."""
        if tag not in self.tags:
            return 0
        kind, count, value = self.tags[tag]
        if count != 1 or kind not in _WHOLE or _UNITS[kind] > len(value):
            raise ImageError(f"The image is a TIFF whose tag {tag} is not one whole number; save it anew.")
        return int(struct.unpack_from(self._order + _WHOLE[kind], value)[0])

    def count(self, tag: int) -> int:
        """Return the number of values of a tag."""
        return self.tags[tag][1] if tag in self.tags else 0

    def total(self, tag: int) -> int:
        """Return the sum of a tag's whole numbers, as far as the file has them."""
        kind, count, value = self.tags[tag]
        if kind not in _WHOLE:
            raise ImageError(
                f"The image is a TIFF whose tag {tag} is no list of whole numbers; save it anew."
            )
        if _UNITS[kind] * count > len(value):
            self._file.seek(min(self._offset.unpack_from(value)[0], self._size))
            value = self._file.read(_UNITS[kind] * count)
        whole = len(value) // _UNITS[kind]
        return sum(struct.unpack_from(f"{self._order}{min(whole, count)}{_WHOLE[kind]}", value))

    def directories(self, most: int) -> int:
        """Return the number of directories, counted up to one more than `most`."""
        seen = {self._first}
        try:
            following = self._following(self._first)
            while following and following not in seen and len(seen) <= most:
                seen.add(following)
                following = self._following(following)
        except struct.error:  # cut off
            return len(seen)
        return len(seen)

    def _begin(self, place: int) -> int:
        self._file.seek(min(place, self._size))
        (count,) = self._count.unpack(self._file.read(self._count.size))
        return int(count)

    def _following(self, place: int) -> int:
        count = self._begin(place)
        self._file.seek(min(count * self._entry.size, self._size), os.SEEK_CUR)
        (following,) = self._offset.unpack(self._file.read(self._offset.size))
        return int(following)


def check_tiff(file: IO[bytes], size: int, max_scanned: int) -> TiffDirectory:
    """Return the tags of a TIFF file's first image; raise ImageError if it costs more than its pixels suggest.

    max_scanned: the most pixels of all scans of the JPEGs inside.
    """
    if file.read(4) == b"MM\0+":
        raise ImageError(
            "The image is a BigTIFF in big-endian order, which is not read; save it as TIFF or PNG."
        )
    file.seek(0)
    directory = TiffDirectory(file, size)
    if directory.data > size + _TAG_BYTES:
        raise ImageError("The image is a TIFF whose tags repeat its data beyond its size; save it anew.")
    if max(directory.count(STRIPS), directory.count(TILES)) > _MOST_PIECES:
        raise ImageError(f"The image is a TIFF of more than {_MOST_PIECES:,} strips or tiles; save it anew.")
    width, height = directory.number(WIDTH), directory.number(HEIGHT)
    piece = width * height
    if TILE_WIDTH in directory.tags or TILE_HEIGHT in directory.tags:
        tile_width, tile_height = directory.number(TILE_WIDTH), directory.number(TILE_HEIGHT)
        piece = tile_width * tile_height
        # Tiles are multiples of 16 and extend beyond the image at the right and below.
        most = max(_LARGE_TILE, 2 * width * height)
        if piece > most:
            raise ImageError(
                f"The image is a TIFF of {width}×{height} pixels in tiles of {tile_width}×{tile_height}; at most "
                f"{most / 1e6:.0f} million pixels are decoded for a tile. Save it anew."
            )
    elif directory.count(STRIPS):
        piece = -(-width * height // directory.count(STRIPS))
    if directory.number(COMPRESSION) in _JPEG:
        _check_jpegs(file, size, directory, piece, max_scanned)
    return directory


def _check_jpegs(file: IO[bytes], size: int, directory: TiffDirectory, piece: int, max_scanned: int) -> None:
    """Check that JPEGs in strips or tiles do not overlap, and the pixels of all their scans."""
    lengths = TILE_BYTES if TILES in directory.tags else STRIP_BYTES
    known = lengths in directory.tags and directory.total(lengths) <= 2 * size
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    if not known or scans * piece > max_scanned:
        raise ImageError("The image is a TIFF of JPEGs that decode its pixels again and again; save it anew.")


def exif_is_sound(block: bytes) -> bool:
    """Return whether the tags of an EXIF block take no more bytes than it has; others can take any memory to read."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    try:
        directory = TiffDirectory(io.BytesIO(block), len(block))
    except struct.error:  # cut off before its tags
        return True
    except ImageError:
        return False
    return directory.data <= len(block) + _TAG_BYTES
