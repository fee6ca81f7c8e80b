"""What a small file may repeat, and what is converted in strips: refused in no time, or read with the same pixels."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from tests import hostile_images as hostile, tiny
from vitrail import ImageError, ImageLimits, load_image
from vitrail.images import sources
from vitrail.images.load import to_rgb
from vitrail.images.tiff_tags import check_tiff, exif_is_sound


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(tiny.image(10, 12))


# What a file repeats


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hostile.jpeg(64, 200), "a JPEG with more than 100 scans"),
        (
            lambda: hostile.jpeg(8_000, 60),
            r"a JPEG with more than 39 scans, each of which decodes its 64\.0 million",
        ),
        (lambda: b"\xff\xd8" + b"\xff" * 2_000_000, "a JPEG with too many fill bytes"),
        (lambda: b"\xff\xd8\xff\xe0\0\2" + b"x" * 2_000_000, "a JPEG with too many fill bytes"),
        (lambda: b"\xff\xd8\xff\xe0\0\2" + b"\xff\xfe\0\2" * 300_000, "a JPEG with too many segments"),
        (lambda: hostile.tiff(46_336), "in tiles of 46336×46336; at most 4 million"),
        (lambda: hostile.tiff(16, tags=2_000, count=100_000), "tags repeat its data"),
        (lambda: hostile.tiff(16, tags=5_000, count=4), "a directory of 5,010 tags"),
        (lambda: hostile.gif(comments=50_000), "a GIF with too many extensions"),
        (lambda: hostile.png(8, chunks=200_000), "a PNG with too many chunks"),
        (lambda: hostile.webp(1 << 24, 255), "at most 100 million are decoded"),
        (lambda: hostile.bmp_of_runs(5 << 20), "a BMP with run-length coding of 5 MiB"),
    ],
    ids=[
        "scans",
        "scans of many pixels",
        "fill bytes",
        "stray bytes",
        "segments",
        "tile",
        "tags' data",
        "tags",
        "comments",
        "chunks",
        "canvas",
        "runs",
    ],
)
def test_file_that_repeats_itself_is_refused_in_no_time(make: Callable[[], bytes], says: str) -> None:
    """Each takes seconds or gigabytes in a decoder."""
    data = make()
    began = time.process_time()
    with pytest.raises(ImageError, match=says):
        load_image(data)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("tile", [16, 256, 1024])
def test_small_image_in_a_usual_tile_is_read(tile: int) -> None:
    assert load_image(hostile.tiff(tile)).size == (8, 8)


def test_tags_that_decoders_could_read_differently_are_refused() -> None:
    """A size that is given twice, or in an odd type, would pass here and be another one in the decoder."""
    plain = struct.pack("<HHII", 322, 4, 1, 16)
    good = hostile.tiff(16)
    assert good.count(plain) == 1
    for odd in (
        struct.pack("<HHII", 322, 16, 1, 16),
        struct.pack("<HHII", 322, 11, 1, 16),
        struct.pack("<HHII", 322, 4, 2, 16),
        struct.pack("<HHII", 322, 9, 1, 1 << 31),
    ):
        with pytest.raises(ImageError, match="tag 322 is not one whole number"):
            load_image(good.replace(plain, odd))
    with pytest.raises(ImageError, match="tag 323 twice"):
        load_image(good.replace(plain, struct.pack("<HHII", 323, 4, 1, 16)))
    with pytest.raises(ImageError, match="BigTIFF in big-endian order"):
        load_image(b"MM\0+" + bytes(60))


def test_scans_of_jpegs_inside_a_tiff_are_counted() -> None:
    """libtiff allows a hundred scans for each strip."""
    image = Image.effect_noise((400, 300), 60).convert("RGB")
    data = encoded(image, "TIFF", compression="jpeg")
    assert load_image(data).size == (400, 300)
    with pytest.raises(ImageError, match="again and again"):
        check_tiff(io.BytesIO(data), len(data), 300 * 100)


def test_usual_files_pass() -> None:
    """Encoders write about ten scans, and tiles of 256."""
    large = Image.effect_noise((1_600, 1_200), 60).convert("RGB")
    for data in (
        encoded(large, "JPEG", progressive=True),
        encoded(large, "TIFF", compression="tiff_lzw"),
        encoded(large, "TIFF"),
        hostile.jpeg(64, 20),
        hostile.gif(comments=1_000),
        hostile.png(8, chunks=1_000),
    ):
        assert min(load_image(data).size) >= 1


def test_exif_that_names_the_same_bytes_again_and_again_is_not_read() -> None:
    """Earlier versions of Pillow keep a copy for each tag: here 200 MB, and any amount in a longer block."""
    block = hostile.exif(4_000, 50_000)
    assert not exif_is_sound(block)
    assert load_image(encoded(Image.new("RGB", (8, 8)), "WEBP", exif=block)).size == (8, 8)
    with pytest.raises(ImageError, match="too much EXIF data"):
        load_image(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=block))


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (hostile.gif(frames=30), 20),
        (hostile.png(8, frames=30), 20),
        (
            encoded(
                Image.new("L", (4, 4)),
                "WEBP",
                save_all=True,
                append_images=[Image.new("L", (4, 4), 25 * n) for n in range(9)],
            ),
            5,
        ),
        (hostile.tiff(16, directories=30), 20),
    ],
    ids=["GIF", "PNG", "WebP", "TIFF"],
)
def test_frames_are_counted_without_being_decoded(data: bytes, limit: int) -> None:
    with pytest.raises(ImageError, match=f"more than {limit} frames"):
        load_image(data, limits=ImageLimits(max_frames=limit))
    assert min(load_image(data).size) >= 1


def test_escapes_of_a_data_url_take_little_memory() -> None:
    """`unquote_to_bytes` makes 77 bytes of memory of each byte of %41."""
    import tracemalloc

    text = "data:image/png," + "%41" * 300_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="no image"):
            load_image(text)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [65_534, 65_535, 65_536, 65_537, 65_538])
def test_escapes_are_read_across_pieces(length: int) -> None:
    """An escape that lies where the text is cut."""
    from vitrail.images.sources import data_url

    for text, data in (("a" * length + "%41%42", b"a" * length + b"AB"), ("%" * length, b"%" * length)):
        assert data_url("data:image/png," + text, ImageLimits()) == data


# What is converted in strips


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_strips_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image goes over RGBA strip by strip; the way of transformers takes it at once."""
    noise = np.random.default_rng(7).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    whole = (
        Image.fromarray(noise).convert(mode)
        if mode != "I;16"
        else Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    )
    kept = np.asarray(to_rgb(whole.copy()))
    if mode != "I;16":
        rgba = whole.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "WHITE")
        ground.paste(rgba, (0, 0), rgba)
        assert np.array_equal(kept, np.asarray(ground.convert("RGB")))
    monkeypatch.setattr("vitrail.images.load._STRIP", 130)
    assert np.array_equal(kept, np.asarray(to_rgb(whole)))


def test_colour_profiles_of_a_png_are_counted() -> None:
    """Pillow unpacks every one: 1 MB from 1 kB."""
    profile = hostile.chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20)))
    data = hostile.png(8)
    end = data.index(b"IDAT") - 4
    assert load_image(data[:end] + profile + data[end:]).size == (8, 8)
    began = time.process_time()
    with pytest.raises(ImageError, match="a PNG with too many colour profiles"):
        load_image(data[:end] + profile * 5_000 + data[end:])
    assert time.process_time() - began < 1


def test_jpeg_that_says_to_be_too_large_is_refused_for_its_size() -> None:
    data = encoded(tiny.image(64, 64), "JPEG").replace(b"\x08\0\x40\0\x40", b"\x08\xff\xdc\xff\xdc")
    with pytest.raises(ImageError, match=r"65500×65500 pixels .* at most 100 million are decoded"):
        load_image(data)


@pytest.mark.parametrize(
    "text", ["", "%", "%%", "%4", "a%41b", "%zz%4z%z4", "%41%42%", "%%41", "é%C3%A9", "%fF" * 3, "%4%41"]
)
def test_escapes_are_read_as_by_urllib(text: str) -> None:
    assert sources._unescaped(text, None) == unquote_to_bytes(text)
    long = text * (200_000 // max(len(text), 1))
    assert sources._unescaped(long, None) == unquote_to_bytes(long)


def test_percent_signs_without_end_take_no_time() -> None:
    for text in ("%" * 15_000_000, "%4" * 5_000_000, "\ud800" * 1000):
        began = time.process_time()
        with pytest.raises(ImageError):
            load_image("data:image/png," + text)
        assert time.process_time() - began < 1.5
