"""From what a person calls a picture to a PIL picture in RGB; every limit on size, bytes and format is here.

URLs are fetched in fetch.py; resizing and normalising are the image processor's.
"""

import base64
import binascii
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitrail.arguments import checked
from vitrail.errors import ImageError
from vitrail.files.lfs import PREFIX_SIZE, refuse_pointer
from vitrail.images.arrays import Pixels, is_array, to_levels
from vitrail.images.fetch import FetchPolicy, fetch, is_url

PilImage: TypeAlias = Image.Image

_ORIENTATION_TAG: Final = 0x0112
# EXIF orientation → what turns the picture upright (Exif 2.32, table 6).
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
_BASE64_STARTS: Final = ("iVBORw0K", "/9j/", "R0lGOD", "UklGR", "Qk")  # PNG, JPEG, GIF, WebP, BMP


@checked
@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may be. Checked from the file's header, before a pixel is decoded.

    max_pixels: height · width; max_aspect: longer over shorter side; max_bytes: of the encoded file;
    formats: Pillow's names of the file formats that are opened at all.
    """

    max_pixels: int = 100_000_000
    max_aspect: float = 1000.0
    max_bytes: int = 512 << 20
    formats: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


LIMITS: Final = ImageLimits()
POLICY: Final = FetchPolicy()


@checked
def load_image(
    source: Any, timeout: float | None = None, *, limits: ImageLimits = LIMITS, policy: FetchPolicy = POLICY
) -> Image.Image:
    """A picture in RGB from a path, URL, data: URL, bytes, binary file, PIL picture, numpy array or tensor.

    Files, URLs and bytes are turned upright by their EXIF orientation; PIL pictures, arrays and tensors are
    taken as they are. Transparency is laid on white, 16-bit greys are scaled to 8 bits, and of an animation
    the first frame is taken. Arrays and tensors are (H,W), (H,W,C) or (C,H,W) with 1, 3 or 4 channels:
    whole numbers from 0 to 255 (or 65535, in 16-bit unsigned numbers), or fractions from 0 to 1.

    timeout: seconds for a URL, instead of the policy's.
    Raises ImageError, in one sentence, for whatever is no picture within the limits.
    """
    if isinstance(source, Image.Image):
        check_size(source.height, source.width, limits)
        return to_rgb(source)
    if is_array(source):
        pixels = Pixels.of(source)
        check_size(pixels.height, pixels.width, limits)
        return from_levels(to_levels(pixels.channels_last(), fractions=True)[0])
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "These bytes are", limits)
    if isinstance(source, os.PathLike):
        return _open_file(Path(source), limits, policy)
    if isinstance(source, str):
        return _open_named(source, timeout, limits, policy)
    if callable(getattr(source, "read", None)):
        return _decode(_read_binary(source, limits), "This file object holds", limits)
    raise ImageError(
        "A picture is a path, URL, data URL, bytes, PIL picture, numpy array or tensor; "
        f"got {type(source).__name__}."
    )


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


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any PIL mode as 8-bit RGB: transparency on white, 16-bit greys scaled; RGB comes back as the same object.

    As in transformers, a picture that is not RGB goes over RGBA onto a white ground. Raises ImageError when
    the file behind a lazily opened picture is damaged.
    """
    with _decoding("The picture is"):
        picture.load()
        if picture.mode == "RGB":
            return picture
        if picture.mode in _WIDE_GREYS:
            return from_levels(_wide_grey(picture))
        if picture.mode == "La":
            picture = picture.convert("LA")
        if picture.mode != "RGBA":
            picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "WHITE")
        ground.paste(picture, (0, 0), picture)
        return ground.convert("RGB")


def from_levels(levels: "np.ndarray[Any, np.dtype[np.uint8]]") -> Image.Image:
    """A PIL picture in RGB from whole numbers (H,W,C) with 1, 3 or 4 channels; the fourth is opacity."""
    if levels.shape[2] == 1:
        levels = np.repeat(levels, 3, axis=2)
    return to_rgb(Image.fromarray(np.ascontiguousarray(levels)))


def _open_named(text: str, timeout: float | None, limits: ImageLimits, policy: FetchPolicy) -> Image.Image:
    """A string: URL, data: URL, file: URL, path, or (as in transformers) the base64 of a file."""
    scheme = text[:12].lower()
    if is_url(text):
        encoded = fetch(text, policy.within(timeout))
        return _decode(encoded, "What this URL answers is", limits)
    if scheme.startswith("data:"):
        return _decode(_data_url(text, limits), "This data URL holds", limits)
    if scheme.startswith("file:"):
        return _open_file(_local(text), limits, policy)
    if text.startswith(_BASE64_STARTS) and len(text) > 64 and not _exists(text):
        return _decode(_base64(text, "This text", limits), "This base64 text holds", limits)
    return _open_file(Path(text), limits, policy)


def read_source(
    source: Any, timeout: float | None = None, *, max_bytes: int, policy: FetchPolicy = POLICY
) -> tuple[bytes, str]:
    """The bytes of a file of at most `max_bytes` in any form that `load_image` takes, and how errors call it.

    Raises ImageError where there is no such file, it is empty or too large, or the policy excludes it.
    """
    limits = replace(LIMITS, max_bytes=max_bytes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), "this file"
    elif callable(getattr(source, "read", None)):
        data, name = _read_binary(source, limits), "this file"
    elif is_url(source):
        data, name = fetch(source, policy.within(timeout)), "the file of this URL"
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data, name = (
            _data_url(source, limits, ("image/", "application/pdf", "application/x-pdf")),
            "this file",
        )
    else:
        path = _local(source) if isinstance(source, str) else Path(source)
        with _opened(path, limits, policy) as file:
            data, name = file.read(max_bytes + 1), shown_path(path)
    _check_bytes(len(data), limits, name)
    return data, name


def shown_path(path: Path) -> str:
    """A path as errors show it: in quotes, and not endless."""
    return repr(str(path) if len(str(path)) <= 160 else f"{str(path)[:157]}…")


def _read_binary(file: Any, limits: ImageLimits) -> bytes:
    try:
        content = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # closed, or not open for reading
        raise ImageError(f"This file object cannot be read: {error}.") from error
    if not isinstance(content, bytes):
        raise ImageError("A file object of a picture is opened in binary mode, as by open(path, 'rb').")
    return content


def _local(text: str) -> Path:
    """A path, also as a file: URL."""
    if text[:5].lower() != "file:":
        return Path(text)
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ImageError("A file: URL names a file of this machine, as in file:///home/me/sign.png.")
    return Path(url2pathname(parts.path))


def _open_file(path: Path, limits: ImageLimits, policy: FetchPolicy) -> Image.Image:
    with _opened(path, limits, policy) as file:
        return _decode_file(file, f"{shown_path(path)} is", limits)


@contextmanager
def _opened(path: Path, limits: ImageLimits, policy: FetchPolicy) -> Iterator[IO[bytes]]:
    """A regular file, within the limit of bytes; ImageError for whatever keeps it from being read."""
    shown = shown_path(path)
    if not policy.allow_files:
        raise ImageError("Local files are not opened here; send the picture as a data URL.")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise ImageError(f"{shown} is {kind}; a picture file was expected.")
        _check_bytes(found.st_size, limits, shown)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {shown}.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or "this is no valid name"
        raise ImageError(f"{shown} cannot be read: {reason}.") from error


def _decode(encoded: bytes, subject: str, limits: ImageLimits) -> Image.Image:
    _check_bytes(len(encoded), limits)
    return _decode_file(io.BytesIO(encoded), subject, limits)


def _decode_file(file: IO[bytes], subject: str, limits: ImageLimits) -> Image.Image:
    """Header, limits, pixels of the first frame, then upright and RGB. The caller closes the file."""
    begin = file.read(PREFIX_SIZE)
    refuse_pointer(begin, subject.rpartition(" ")[0], ImageError)
    if begin.startswith(b"%PDF-"):
        raise ImageError(
            f"{subject} a PDF, and its pages are pictures of their own: open it with vitrail.load_pages, or name it in "
            'a message as {"type": "file", "path": …}.'
        )
    file.seek(0)
    with _decoding(subject, limits):
        picture: Image.Image = Image.open(file, formats=limits.formats)
    check_size(picture.height, picture.width, limits)
    with _decoding(subject, limits):
        picture.load()
        turn = _UPRIGHT.get(_orientation(picture))
        if picture.mode == "RGB" and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # one colour of the file means transparent (PNG's tRNS)
        picture = to_rgb(picture)
        return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation 1…8. A block that cannot be read says nothing: viewers show such pictures too."""
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # as many kinds as there are ways to damage it
        return 1
    return value if isinstance(value, int) else 1


def _wide_grey(picture: Image.Image) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Levels (H,W,1) of a grey picture with more than 8 bits."""
    grey = np.asarray(picture)
    if picture.mode == "F":
        return to_levels(grey[..., None], fractions=True)[0]
    if int(grey.min()) < 0 or int(grey.max()) > 0xFFFF:
        raise ImageError("A grey picture with 32 bits has no agreed range; save it with 8 or 16 bits.")
    levels = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        levels[grey == clear] = 255
    return levels[..., None]


@contextmanager
def _decoding(subject: str, limits: ImageLimits = LIMITS) -> Iterator[None]:
    """Turn whatever Pillow raises into one ImageError. Its own texts are not shown: they can hold addresses."""
    try:
        with warnings.catch_warnings():
            # Pillow remarks on sizes before our own check can, and on oddities that change no pixel.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        most = limits.max_pixels / 1e6
        raise ImageError(
            f"The picture has too many pixels; at most {most:.0f} million are decoded. Scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{subject} no picture in a format that is read ({', '.join(limits.formats)})."
        ) from error
    except Exception as error:  # decoders fail in every way: OSError, SyntaxError, struct.error, EOFError, …
        raise ImageError(f"{subject} a damaged or truncated picture; it cannot be decoded.") from error


def _check_bytes(size: int, limits: ImageLimits, name: str = "The picture") -> None:
    if size == 0:
        raise ImageError(f"{name} is empty.")
    if size > limits.max_bytes:
        raise ImageError(
            f"{name} has {size >> 20} MiB; at most {limits.max_bytes / (1 << 20):.3g} MiB are read."
        )


def _data_url(text: str, limits: ImageLimits, kinds: tuple[str, ...] = ("image/",)) -> bytes:
    """The bytes of data:[type][;base64],… (RFC 2397); `kinds`: what the type may begin with."""
    head, comma, body = text[5:].partition(",")
    if not comma:
        raise ImageError("A data URL looks like data:image/png;base64,…; this one has no comma.")
    media, *options = head.split(";")
    if media.strip() and not media.strip().lower().startswith((*kinds, "application/octet-stream")):
        raise ImageError(f"A data URL of a picture has the type image/…; got {media[:40]!r}.")
    if any(option.strip().lower() == "base64" for option in options):
        return _base64(body, "The data URL", limits)
    _check_bytes(len(body), limits)
    return unquote_to_bytes(body)


def _base64(text: str, subject: str, limits: ImageLimits) -> bytes:
    _check_bytes(len(text) * 3 // 4, limits)
    try:
        plain = b"".join(unquote_to_bytes(text).split())
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{subject} holds no valid base64.") from error


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def flatten_images(images: Any) -> list[Any]:
    """One picture, a list, or a list of lists, as one flat list of PIL pictures, arrays and tensors.

    Paths, URLs and bytes are opened; a four-dimensional array or tensor is a batch of pictures.
    Raises ImageError for an empty list and for what is no picture.
    """
    flat: list[Any] = []
    _collect(images, flat, depth=0)
    if not flat:
        raise ImageError("At least one picture was expected; the list is empty.")
    return flat


def _collect(images: Any, flat: list[Any], depth: int) -> None:
    if isinstance(images, (list, tuple)):
        if depth == 3:
            raise ImageError("Pictures may lie in a list or in a list of lists, not deeper.")
        for item in images:
            _collect(item, flat, depth + 1)
    elif is_array(images):
        flat.extend(images if images.ndim == 4 else [images])
    elif isinstance(images, Image.Image):
        flat.append(images)
    else:
        flat.append(load_image(images))
