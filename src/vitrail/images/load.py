"""load_image: any image source → a PIL image in RGB, within the limits of its request. Every image is decoded here.

Costs beyond the pixels are checked in preflight.py; resizing and normalising are in the image processors.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitrail.arguments import checked
from vitrail.errors import ImageError
from vitrail.files.lfs import PREFIX_SIZE, refuse_pointer
from vitrail.images.arrays import Pixels, is_array, to_levels
from vitrail.images.fetch import FetchPolicy, fetch, is_url
from vitrail.images.isolated import decode_apart
from vitrail.images.limits import LIMITS as LIMITS, ImageLimits as ImageLimits
from vitrail.images.preflight import check_file, check_size as check_size
from vitrail.images.request import ImageRequest, image_request
from vitrail.images.sources import (
    check_bytes,
    data_url,
    decode_base64,
    is_base64,
    local_path,
    opened_file,
    read_binary,
    shown_path,
)
from vitrail.images.tiff_tags import exif_is_sound

PilImage: TypeAlias = Image.Image

_ORIENTATION_TAG: Final = 0x0112
# EXIF orientation → the transposition that turns the image upright (Exif 2.32, table 6).
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDE_GREYS: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_STRIP: Final = 1 << 22  # pixels per conversion


@checked
def load_image(
    source: Any,
    timeout: float | None = None,
    *,
    limits: ImageLimits | None = None,
    policy: FetchPolicy | None = None,
) -> Image.Image:
    """Load an image in RGB from a path, URL, data: URL, bytes, binary file, PIL image, numpy array or tensor.

    Files, URLs and bytes are turned upright by their EXIF orientation; PIL images, arrays and tensors are not.
    Transparency is laid on white, 16-bit greys are scaled to 8 bits, and an animation gives its first frame. Arrays and
    tensors are (H,W), (H,W,C) or (C,H,W) with 1, 3 or 4 channels: whole numbers from 0 to 255 (or 65535, in 16-bit
    unsigned numbers), or fractions from 0 to 1.

    Args:
        source: the image.
        timeout: seconds for a URL, in place of the policy's.
        limits: in place of those of the surrounding `image_request`, or the defaults.
        policy: likewise.

    Raises:
        ImageError: no image within the limits; one sentence.
    """
    with image_request(limits, policy) as request:
        if isinstance(source, Image.Image):
            check_size(source.height, source.width, request.limits)
            return to_rgb(source)
        if is_array(source):
            pixels = Pixels.of(source)
            check_size(pixels.height, pixels.width, request.limits)
            return from_levels(to_levels(pixels.channels_last(), fractions=True)[0])
        with request.timed() as left:
            return _open(source, timeout, request, left)


def _open(source: Any, timeout: float | None, request: ImageRequest, left: float) -> Image.Image:
    """Open a source that has to be decoded. Texts: URL, data: URL, file: URL, base64 (as in transformers), or path."""
    limits, policy = request.limits, request.policy
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "These bytes are", request)
    if isinstance(source, os.PathLike):
        return _open_file(Path(source), request)
    if isinstance(source, str):
        if is_url(source):
            encoded = fetch(source, policy.within(timeout, seconds=left, max_bytes=limits.max_bytes))
            return _decode(encoded, "What this URL answers is", request)
        if source[:5].lower() == "data:":
            return _decode(data_url(source, limits), "This data URL holds", request)
        if source[:5].lower() == "file:":
            return _open_file(local_path(source), request)
        if is_base64(source, files=policy.allow_files):
            return _decode(decode_base64(source, "This text", limits), "This base64 text holds", request)
        return _open_file(Path(source), request)
    if callable(getattr(source, "read", None)):
        return _decode(read_binary(source, limits), "This file object holds", request)
    raise ImageError(
        "An image is a path, URL, data URL, bytes, PIL image, numpy array or tensor; "
        f"got {type(source).__name__}."
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL mode to 8-bit RGB: transparency on white, 16-bit greys scaled; RGB gives the same object.

    As in transformers, an image that is not RGB is laid on white by way of RGBA.

    Raises:
        ImageError: the file behind a lazily opened image is damaged.
    """
    with _decoding("The image is"):
        image.load()
        if image.mode == "RGB":
            return image
        if image.mode in _WIDE_GREYS:
            return from_levels(_wide_grey(image))
        if image.mode in ("1", "L") and "transparency" not in image.info:
            return image.convert("RGB")  # the same result as by way of RGBA
        rows = max(1, _STRIP // image.width)
        if image.height <= rows:
            return _on_white(image)
        whole = Image.new("RGB", image.size)  # strip by strip: RGBA, the ground and RGB are 12 bytes a pixel
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            whole.paste(_on_white(image.crop((0, top, image.width, bottom))), (0, top))
        return whole


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "WHITE")
    ground.paste(image, (0, 0), image)
    return ground.convert("RGB")


def from_levels(levels: "np.ndarray[Any, np.dtype[np.uint8]]") -> Image.Image:
    """Make a PIL image in RGB from whole numbers (H,W,C) with 1, 3 or 4 channels; the fourth is opacity."""
    if levels.shape[2] == 1:
        levels = np.repeat(levels, 3, axis=2)
    return to_rgb(Image.fromarray(np.ascontiguousarray(levels)))


def _open_file(path: Path, request: ImageRequest) -> Image.Image:
    with opened_file(path, request.limits, request.policy) as file:
        return _decode_file(file, f"{shown_path(path)} is", request)


def _decode(encoded: bytes, subject: str, request: ImageRequest) -> Image.Image:
    check_bytes(len(encoded), request.limits)
    return _decode_file(io.BytesIO(encoded), subject, request)


def _decode_file(file: IO[bytes], subject: str, request: ImageRequest) -> Image.Image:
    """Count and decode an encoded image, here or in the decoding process. The caller closes the file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    request.count_bytes(size)
    if not request.limits.isolated:
        image = read_header(file, subject, request.limits)
        request.count_image(image.height, image.width)
        return decode(image, subject, request.limits)
    width, height, pixels = decode_apart(file.read(request.limits.max_bytes), subject, request)
    check_size(height, width, request.limits)
    return Image.frombytes("RGB", (width, height), pixels)


def read_header(file: IO[bytes], subject: str, limits: ImageLimits) -> Image.Image:
    """Open an image within the limits without decoding a pixel. subject: beginning of error messages."""
    begin = file.read(PREFIX_SIZE)
    refuse_pointer(begin, subject.rpartition(" ")[0], ImageError)
    if begin.startswith(b"%PDF-"):
        raise ImageError(
            f"{subject} a PDF, and its pages are images of their own: open it with vitrail.load_pages, or name it in "
            'a message as {"type": "file", "path": …}.'
        )
    file.seek(0)
    with _decoding(subject, limits):
        check_file(file, limits)
        file.seek(0)
        image: Image.Image = Image.open(file, formats=limits.formats)
    check_size(image.height, image.width, limits)
    return image


def decode(image: Image.Image, subject: str, limits: ImageLimits) -> Image.Image:
    """Decode the first frame of the result of `read_header`, upright and in RGB, in this process."""
    with _decoding(subject, limits):
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        if image.mode == "RGB" and "transparency" in image.info:
            image = image.convert("RGBA")  # one colour of the file means transparent (PNG's tRNS)
        image = to_rgb(image)
        return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1…8. Unreadable blocks are ignored, as viewers do."""
    try:
        block = image.info.get("exif")
        if block is None and "Raw profile type exif" in image.info:
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        if block and not exif_is_sound(block):
            return 1
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # of many kinds
        return 1
    return value if isinstance(value, int) else 1


def _wide_grey(image: Image.Image) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return the levels (H,W,1) of a grey image with more than 8 bits."""
    grey = np.asarray(image)
    if image.mode == "F":
        return to_levels(grey[..., None], fractions=True)[0]
    if int(grey.min()) < 0 or int(grey.max()) > 0xFFFF:
        raise ImageError("A grey image with 32 bits has no agreed range; save it with 8 or 16 bits.")
    levels = np.empty(grey.shape, np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        levels[top : top + rows] = (grey[top : top + rows].astype(np.uint32) + 128) // 257
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        levels[grey == clear] = 255
    return levels[..., None]


@contextmanager
def _decoding(subject: str, limits: ImageLimits = LIMITS) -> Iterator[None]:
    """Turn any error of Pillow into one ImageError, without Pillow's text, which can hold addresses."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes before our own check, and of oddities that change no pixel.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        most = limits.max_pixels / 1e6
        raise ImageError(
            f"The image has too many pixels; at most {most:.0f} million are decoded. Scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{subject} no image in a format that is read ({', '.join(limits.formats)})."
        ) from error
    except Exception as error:  # decoders fail in every way: OSError, SyntaxError, struct.error, EOFError, …
        raise ImageError(f"{subject} a damaged or truncated image; it cannot be decoded.") from error


def flatten_images(images: Any) -> list[Any]:
    """Open the paths, URLs and bytes of `flatten_sources`: PIL images, arrays and tensors."""
    return [opened(source) for source in flatten_sources(images)]


def opened(source: Any) -> Any:
    """Return a PIL image, array or tensor as it is; `load_image` of anything else."""
    return source if isinstance(source, Image.Image) or is_array(source) else load_image(source)


def flatten_sources(images: Any) -> list[Any]:
    """Return one image, a list, or a list of lists as one flat list, without opening any.

    A four-dimensional array or tensor is a batch of images. Raises ImageError for an empty list.
    """
    flat: list[Any] = []
    _collect(images, flat, depth=0)
    if not flat:
        raise ImageError("At least one image was expected; the list is empty.")
    return flat


def _collect(images: Any, flat: list[Any], depth: int) -> None:
    if isinstance(images, (list, tuple)):
        if depth == 3:
            raise ImageError("Images may lie in a list or in a list of lists, not deeper.")
        for item in images:
            _collect(item, flat, depth + 1)
    elif is_array(images) and images.ndim == 4:
        flat.extend(images)
    else:
        flat.append(images)
