"""Small files that cost much to open, written by hand: scans, tiles, tags, blocks and chunks without end."""

from __future__ import annotations

import base64
import io
import struct
import zlib

from PIL import Image


def jpeg(side: int, scans: int) -> bytes:
    """A progressive grey JPEG of side × side pixels whose every further scan holds nothing and walks all of them."""

    def part(mark: int, data: bytes) -> bytes:
        return b"\xff" + bytes([mark]) + struct.pack(">H", len(data) + 2) + data

    out = b"\xff\xd8" + part(0xDB, b"\0" + b"\1" * 64)
    out += part(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    out += part(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    out += part(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    blocks = ((side + 7) // 8) ** 2
    out += part(0xDA, b"\1\1\0" + b"\0\0\0") + b"\0" * ((blocks + 7) // 8)
    bits = ("0" + "1" * 13 + "0") * ((blocks + 32766) // 32767)
    bits += "1" * (-len(bits) % 8)
    runs = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    return out + (part(0xDA, b"\1\1\0" + bytes([1, 63, 0])) + runs) * scans + b"\xff\xd9"


def tiff(tile: int, *, tags: int = 0, count: int = 0, directories: int = 1) -> bytes:
    """A TIFF of 8 × 8 pixels in one tile; further tags that each name `count` bytes; empty directories after the first."""
    data = zlib.compress(b"\0" * (1 << 20), 9)
    plain = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 0)]
    entries = [(tag, 4, 1, value) for tag, value in plain] + [(325, 4, 1, len(data))]
    entries += [(1000 + number, 7, count, 0) for number in range(tags)]
    end = 8 + 2 + 12 * len(entries)
    more = b""
    for number in range(1, directories):
        here = end + 4 + 6 * (number - 1)
        more += struct.pack("<HI", 0, here + 6 if number + 1 < directories else 0)
    entries[8] = (324, 4, 1, end + 4 + len(more))
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    following = end + 4 if directories > 1 else 0
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", following) + more + data


def gif(comments: int = 0, frames: int = 1) -> bytes:
    """A GIF of one pixel after so many comments; frames: copies of its image."""
    kept = io.BytesIO()
    Image.new("P", (1, 1)).save(kept, "GIF")
    whole = kept.getvalue()
    image = whole.index(b",", 13 + (3 << ((whole[10] & 7) + 1)))
    return whole[:image] + b"!\xfe\1x\0" * comments + whole[image:-1] * frames + b";"


def png(side: int, chunks: int = 0, frames: int = 0) -> bytes:
    """A PNG of side × side bits; chunks: empty ones before its pixels; frames: an animation that it announces."""
    kept = io.BytesIO()
    Image.new("1", (side, side)).save(kept, "PNG")
    whole = kept.getvalue()
    extra = chunk(b"exTr", b"") * chunks + (chunk(b"acTL", struct.pack(">II", frames, 0)) if frames else b"")
    return whole[:33] + extra + whole[33:]


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def webp(width: int, height: int) -> bytes:
    """The header of a WebP that announces a canvas of that size."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + sides
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_of_runs(size: int) -> bytes:
    """A BMP with run-length coding whose steps move nowhere."""
    head = struct.pack("<IiiHHIIiiII", 40, 100, 100, 1, 8, 1, 0, 0, 0, 2, 0)
    return (
        b"BM" + struct.pack("<IHHI", size, 0, 0, 14 + 40 + 8) + head + b"\0" * 8 + b"\0\2\0\0" * (size // 4)
    )


def exif(entries: int, count: int) -> bytes:
    """EXIF data whose every tag names the same `count` bytes."""
    table = b"".join(struct.pack("<HHII", 1000 + number, 7, count, 0) for number in range(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, entries) + table + b"\0\0\0\0" + b"\0" * 10_000


def data_url(data: bytes) -> str:
    """The file as a message of a stranger brings it."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
