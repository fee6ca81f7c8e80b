"""PDF files for the tests, written by hand: coloured pages of any size, encrypted ones, ones that take for ever."""

from __future__ import annotations

from collections.abc import Sequence

Colour = tuple[float, float, float]
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def pdf(*pages: tuple[float, float, Colour], encrypted: bool = False) -> bytes:
    """A PDF with a page for each (width, height in points, colour); encrypted: it asks for a password."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b""]
    for width, height, (red, green, blue) in pages:
        number = len(objects) + 1
        ink = b"%g %g %g rg 0 0 %g %g re f" % (red, green, blue, width, height)
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %g %g]/Contents %d 0 R>>" % (width, height, number + 1)
        )
        objects.append(_stream(b"", ink))
    kids = b" ".join(b"%d 0 R" % number for number in range(3, len(objects) + 1, 2))
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages))
    trailer = b""
    if encrypted:
        lock = b"<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>" % (b"4f" * 32, b"55" * 32)
        objects.append(lock)
        trailer = (
            b"/Encrypt %d 0 R/ID[<00112233445566778899aabbccddeeff><00112233445566778899aabbccddeeff>]"
            % len(objects)
        )
    return _file(objects, trailer)


def endless(depth: int = 12, times: int = 10) -> bytes:
    """A PDF of a few kilobytes whose page draws a form that draws a form …: times ** depth drawings."""
    shown = b"/Resources<</XObject<</F %d 0 R>>>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R" + shown % 5 + b">>",
        _stream(b"", b"/F Do"),
    ]
    for level in range(depth):
        form = b"/Type/XObject/Subtype/Form/BBox[0 0 99 99]"
        objects.append(_stream(form + shown % (level + 6), b"/F Do " * times))
    objects.append(_stream(b"/Type/XObject/Subtype/Form/BBox[0 0 99 99]", b"0 0 9 9 re f"))
    return _file(objects)


def _stream(fields: bytes, content: bytes) -> bytes:
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (fields, len(content), content)


def _file(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        trailer,
        start,
    )
    return bytes(out)
