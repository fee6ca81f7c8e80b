"""load_image: every source, every mode, every limit."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import image as picture
from vitrail import ImageError, load_image
from vitrail.images.fetch import FetchPolicy
from vitrail.images.load import ImageLimits, flatten_images, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces that size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    assert image.mode == "RGB"
    return np.asarray(image)


# Sources


def test_every_source_gives_the_same_image(tmp_path: Path) -> None:
    original = picture(20, 30)
    expected, data = np.asarray(original), encoded(original)
    path = tmp_path / "an image.png"
    path.write_bytes(data)
    plain = base64.b64encode(data).decode()
    array = np.asarray(original)
    sources: list[Any] = [
        str(path),
        path,
        path.as_uri(),
        f"data:image/png;base64,{plain}",
        f"data:image/png;name=x;base64,{plain[:50]}\n{plain[50:].replace('+', '%2B')}",
        f"data:;base64,{plain.rstrip('=')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
        plain,
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        original,
        array,
        array.transpose(2, 0, 1),
        array.astype(np.int64),
        array.astype(np.float32),
        array / 255,
        array.astype(np.uint16) * 257,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(array / 255).requires_grad_(),
    ]
    for source in sources:
        assert np.array_equal(pixels(load_image(source)), expected), type(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(kind: str) -> None:
    original = Image.new("RGB", (9, 7), (200, 30, 60))
    assert np.abs(pixels(load_image(encoded(original, kind))).astype(int) - np.asarray(original)).max() <= 4


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_flat_array_of_fractions_is_black_or_white(value: float) -> None:
    assert (pixels(load_image(np.full((4, 4, 3), value))) == 255 * value).all()
    assert (pixels(load_image(np.full((4, 4), bool(value)))) == 255 * value).all()


def test_arrays_of_grey_and_with_opacity() -> None:
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    assert (pixels(load_image(grey)) == grey[..., None]).all()
    assert (pixels(load_image(grey[None])) == grey[..., None]).all()
    clear = np.zeros((2, 5, 4), np.uint8)
    assert (pixels(load_image(clear)) == 255).all()
    assert (pixels(load_image(torch.from_numpy(clear).permute(2, 0, 1))) == 255).all()
    half = torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16)
    assert (pixels(load_image(half)) == 128).all()


def test_a_telephone_image_with_several_frames() -> None:
    """Pillow takes a JPEG with a second image inside for a format of its own (MPO)."""
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(pixels(load_image(data)).astype(int) - (255, 0, 0)).max() <= 4


def test_a_text_file_object(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="binary mode"):
        load_image(io.StringIO("text"))


# Modes


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 102))
    for source in (image, encoded(image), image.convert("RGBa"), encoded(image, "WEBP", lossless=True)):
        assert pixels(load_image(source)).tolist() == [[[255] * 3, [153] * 3]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixels(load_image(grey)).tolist() == pixels(load_image(encoded(grey))).tolist() == [[[255] * 3]]
    assert pixels(to_rgb(Image.new("La", (1, 1), (0, 0)))).tolist() == [[[255] * 3]]


def test_a_transparent_colour_becomes_white() -> None:
    """PNG's tRNS names one colour, in palettes, greys and full colour alike."""
    colour = Image.new("RGB", (2, 1), (1, 2, 3))
    colour.putpixel((1, 0), (9, 9, 9))
    assert pixels(load_image(encoded(colour, transparency=(1, 2, 3)))).tolist() == [[[255] * 3, [9] * 3]]
    grey = Image.new("L", (1, 1), 7)
    assert pixels(load_image(encoded(grey, transparency=7))).tolist() == [[[255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(load_image(encoded(palette, transparency=0))).tolist() == [[[255] * 3, [40, 50, 60]]]
    assert pixels(load_image(encoded(palette))).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_modes(mode: str) -> None:
    image = picture(8, 8).convert(mode) if mode != "LAB" else Image.new("LAB", (8, 8), (128, 128, 128))
    assert pixels(load_image(image)).shape == (8, 8, 3)
    assert image.mode == mode


def test_16_bit_greys_are_scaled_not_clipped() -> None:
    """Pillow's own conversion would make everything above 255 white."""
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    expected = [0, 0, 1, 128, 255]
    image = Image.fromarray(values)
    assert image.mode.startswith("I;16")
    for source in (image, encoded(image), encoded(image, "TIFF"), image.convert("I"), values):
        assert pixels(load_image(source))[0, :, 0].tolist() == expected
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert pixels(load_image(real))[0, :, 1].tolist() == [0, 128, 255]


def test_greys_without_an_agreed_range() -> None:
    with pytest.raises(ImageError, match="32 bits"):
        load_image(Image.new("I", (2, 2), 1 << 20))
    with pytest.raises(ImageError, match="fractions"):
        load_image(Image.new("F", (2, 2), 3.7))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(load_image(data)) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_files_are_turned_upright_and_objects_are_not(orientation: int, kind: str) -> None:
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    upright = load_image(data)
    assert upright.size == ((8, 16) if orientation >= 5 else (16, 8))
    dark = np.argwhere(pixels(upright)[..., 0] < 128).mean(axis=0) < np.array(upright.size[::-1]) / 2 - 1
    # Where the dark half lies when row 0 and column 0 are shown as the tag says: top or left, or neither.
    expected = {1: "left", 2: "", 3: "", 4: "left", 5: "top", 6: "top", 7: "", 8: ""}[orientation]
    assert dark.tolist() == [expected == "top", expected == "left"]
    opened = Image.open(io.BytesIO(data))
    assert load_image(opened).size == (
        (16, 8) if kind != "TIFF" else upright.size
    )  # Pillow turns TIFFs itself


@pytest.mark.filterwarnings("error")
def test_a_damaged_exif_block_does_not_spoil_the_image() -> None:
    data = encoded(Image.new("RGB", (4, 4), "red"), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert load_image(data).size == (4, 4)


# What is refused


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no file '.*absent\.png'\."):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match=r"cannot be read|no file"):
        load_image("x" * 5000)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="no regular file"):
        load_image(tmp_path / "pipe")


def test_a_text_file_named_png(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no image at all\n" * 20)
    with pytest.raises(ImageError, match=r"notes\.png' is no image in a format that is read \(PNG, JPEG"):
        load_image(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"notes\.png' is empty"):
        load_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file(kind: str, share: float, tmp_path: Path) -> None:
    data = encoded(picture(64, 64), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"damaged or truncated|no image"):
        load_image(path)
    with pytest.raises(ImageError, match=r"damaged or truncated|no image"):
        load_image(path.read_bytes())


def test_flipped_bytes_never_escape_as_another_error() -> None:
    data = encoded(picture(16, 16))
    for position in range(8, len(data), 7):
        broken = data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
        with contextlib.suppress(ImageError):
            assert load_image(broken).mode == "RGB"


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (15_000, 10_000), (1_000_000, 1_000_000)])
@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="at most 100 million are decoded"):
        load_image(bomb(width, height))


def test_a_lazily_opened_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    opened = Image.open(io.BytesIO(bomb(20_000, 10_000)))
    with pytest.raises(ImageError, match="200 million"):
        load_image(opened)


@pytest.mark.parametrize("source", [np.zeros((0, 5, 3), np.uint8), Image.new("RGB", (0, 5)), bomb(0, 5)])
def test_no_pixels(source: Any) -> None:
    with pytest.raises(ImageError, match=r"no pixels|damaged|no image"):
        load_image(source)


def test_narrow_images() -> None:
    with pytest.raises(ImageError, match="more than 1000 times"):
        load_image(Image.new("RGB", (3000, 1)))
    assert load_image(Image.new("RGB", (300, 1))).size == (300, 1)


def test_limits_can_be_given() -> None:
    data = encoded(picture(20, 30))
    with pytest.raises(ImageError, match="30×20 pixels"):
        load_image(data, limits=ImageLimits(max_pixels=599))
    with pytest.raises(ImageError, match="MiB are read"):
        load_image(data, limits=ImageLimits(max_bytes=100))
    with pytest.raises(ImageError, match="MiB are read"):
        load_image(io.BytesIO(data), limits=ImageLimits(max_bytes=100))
    with pytest.raises(ImageError, match=r"\(JPEG\)"):
        load_image(data, limits=ImageLimits(formats=("JPEG",)))


def test_a_server_opens_no_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(4, 4)))
    for source in (str(path), path, path.as_uri()):
        with pytest.raises(ImageError, match="not opened here"):
            load_image(source, policy=FetchPolicy.strict(None))


def test_formats_that_are_not_on_the_list(tmp_path: Path) -> None:
    """Pillow opens dozens of formats; those with a past are not asked."""
    with pytest.raises(ImageError, match="format that is read"):
        load_image(encoded(picture(8, 8), "ICO"))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@@", "no valid base64"),
        ("data:text/html,hello", "type image"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64," + base64.b64encode(b"text, no image").decode(), "no image"),
        ("file://elsewhere/a.png", "this machine"),
    ],
)
def test_wrong_data_and_file_urls(url: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        load_image(url)


@pytest.mark.parametrize("source", [None, 5, 2.5, object(), {"url": "x"}])
def test_other_types(source: Any) -> None:
    with pytest.raises(ImageError, match=f"got {type(source).__name__}"):
        load_image(source)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5, 2), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((1, 1, 4, 4, 3)),
        np.zeros((4, 4), complex),
    ],
)
def test_arrays_that_are_no_images(array: Any) -> None:
    with pytest.raises(ImageError):
        load_image(array)
    with pytest.raises(ImageError, match="300"):
        load_image(np.full((4, 4, 3), 300))
    with pytest.raises(ImageError, match="nan"):
        load_image(np.full((4, 4, 3), np.nan))


def test_lists_become_flat() -> None:
    image = picture(4, 4)
    batch = np.zeros((2, 4, 4, 3), np.uint8)
    flat = flatten_images([[image], [encoded(image), image]])
    assert [isinstance(item, Image.Image) for item in flat] == [True] * 3
    assert len(flatten_images(batch)) == len(flatten_images([torch.from_numpy(batch)])) == 2
    assert flatten_images(image) == [image]
    for empty in ([], [[]], [[], []]):
        with pytest.raises(ImageError, match="empty"):
            flatten_images(empty)
    with pytest.raises(ImageError, match="NoneType"):
        flatten_images([image, None])
    with pytest.raises(ImageError, match="deeper"):
        flatten_images([[[[image]]]])
