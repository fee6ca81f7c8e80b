"""Resizing of arrays and tensors without PIL: torch's antialiased kernels, and mistral-common's cubic one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrail.errors import InputError, UnsupportedError
from vitrail.images.arrays import Array

if TYPE_CHECKING:
    import torch

Float32Array = np.ndarray[Any, np.dtype[np.float32]]

NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)  # PIL's numbers of its filters
_FILTER_NAMES: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_TORCH_MODES: Final = {NEAREST: "nearest", BILINEAR: "bilinear", BICUBIC: "bicubic"}
_SHARPNESS: Final = -0.75  # cv2.INTER_CUBIC's `a`


def check_filter(resample: Any) -> int:
    """Return the number of a resampling filter, given as PIL's number or enumeration, or by its name.

    Raises:
        InputError: no such filter.
    """
    named = getattr(resample, "value", resample)
    if isinstance(named, str) and named.lower() in _FILTER_NAMES:
        return _FILTER_NAMES.index(named.lower())
    if isinstance(named, bool) or not isinstance(named, int) or not 0 <= named < len(_FILTER_NAMES):
        raise InputError(
            f"resample is one of PIL's filters, 0 to 5 or {', '.join(_FILTER_NAMES)}; got {resample!r}."
        )
    return named


def resize_tensor(image: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Resize an image (C,H,W) to size (height, width), antialiased, in its own type, as torchvision does.

    uint8 uses torch's 8-bit kernel, with torchvision's exact values on a CPU. There is none on other devices, so such
    images go through the host and the result does not depend on the device.

    Raises:
        UnsupportedError: a filter for PIL images only.
    """
    import torch
    from torch.nn.functional import interpolate

    if tuple(image.shape[-2:]) == size:
        return image
    mode = _TORCH_MODES.get(resample)
    if mode is None:
        raise UnsupportedError(
            f"The filter {_FILTER_NAMES[resample]!r} exists for PIL images only: use PixtralImageProcessor, "
            f"or one of {', '.join(_TORCH_MODES.values())}."
        )
    options: dict[str, Any] = {"size": size, "mode": mode}
    if resample != NEAREST:
        options |= {"antialias": True, "align_corners": False}
    if image.dtype == torch.uint8:
        return interpolate(image[None].cpu(), **options)[0].to(image.device)
    resized = interpolate(image[None].float(), **options)[0]
    return resized if image.is_floating_point() else resized.round_().to(image.dtype)


def resize_cubic(image: Array, size: tuple[int, int]) -> Float32Array:
    """Resize an image (H,W,C) to size (height, width) in float32, as cv2.resize(…, INTER_CUBIC) does.

    Four taps with a = -0.75 around each point, whatever the scale (no antialiasing), edges repeated, and
    overshoot below 0 and above 255 kept, as in mistral-common (docs/formats.md, "Resizing and normalising").
    """
    if image.shape[:2] == size:
        return image.astype(np.float32)
    rows, row_weights = _taps(image.shape[0], size[0])
    cols, col_weights = _taps(image.shape[1], size[1])
    # Rows first: only the rows in use are converted to float32.
    tall = row_weights[0][:, None, None] * image[rows[0]]
    for tap in range(1, 4):
        tall += row_weights[tap][:, None, None] * image[rows[tap]]
    wide = col_weights[0][None, :, None] * tall[:, cols[0]]
    for tap in range(1, 4):
        wide += col_weights[tap][None, :, None] * tall[:, cols[tap]]
    return np.asarray(wide, dtype=np.float32)


def _taps(length: int, wanted: int) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Float32Array]:
    """Return the four neighbours (4, wanted) of each new point along an axis of `length`, and their weights."""
    centre = (np.arange(wanted) + 0.5) * (length / wanted) - 0.5  # float64, or the weights lose digits
    left = np.floor(centre)
    t = centre - left
    a = _SHARPNESS
    outer = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a
    inner = ((a + 2) * t - (a + 3)) * t * t + 1
    after = ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1
    weights = np.stack([outer, inner, after, 1 - outer - inner - after]).astype(np.float32)
    indices = left.astype(np.int64)[None] + np.arange(-1, 3)[:, None]
    return np.clip(indices, 0, length - 1), weights
