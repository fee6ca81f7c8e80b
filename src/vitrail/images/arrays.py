"""Pixels: images given as numpy arrays or tensors; the place of their channels and the range of their numbers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.arguments import short
from vitrail.errors import ImageError, InputError

Array = np.ndarray[Any, np.dtype[Any]]
FIRST, LAST = "channels_first", "channels_last"


def is_array(value: object) -> bool:
    """Return whether `value` is a numpy array or a tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


@dataclass(frozen=True, slots=True)
class Pixels:
    """One image as an array or tensor, with the place of its channels.

    Attributes:
        values: (H,W) for grey, (H,W,C) or (C,H,W).
        layout: FIRST, LAST, or None for (H,W).
    """

    values: Any
    layout: str | None

    @classmethod
    def of(cls, values: Any, layout: Any = None) -> Pixels:
        """Find the channels of `values`, or take `layout` ("channels_first", "channels_last", "none").

        Where both ends could be channels the first is taken, as in transformers.

        Raises:
            ImageError: another shape.
            InputError: another layout.
        """
        layout = check_layout(layout)
        if getattr(values, "is_meta", False) or getattr(values, "is_sparse", False):
            raise ImageError(
                "An image's tensor must hold its numbers; this one is sparse or on the meta device."
            )
        shape = tuple(int(side) for side in values.shape)
        if len(shape) == 2 and layout in (None, "none"):
            return cls(values, None)
        if len(shape) == 3 and layout != "none":
            for counts in ((1, 3), (4,)):
                if shape[0] in counts and layout in (None, FIRST):
                    return cls(values, FIRST)
                if shape[2] in counts and layout in (None, LAST):
                    return cls(values, LAST)
        told = f" with input_data_format={layout!r}" if layout else ""
        raise ImageError(
            f"An image's array is (H,W), (H,W,C) or (C,H,W) with 1, 3 or 4 channels{told}; "
            f"got the shape {shape}."
        )

    @property
    def height(self) -> int:
        return int(self.values.shape[1 if self.layout == FIRST else 0])

    @property
    def width(self) -> int:
        return int(self.values.shape[2 if self.layout == FIRST else 1])

    def channels_last(self) -> Array:
        """Return the numbers as a numpy array (H,W,C); a tensor is copied to the host, bfloat16 becomes float32."""
        values = self.values
        if not isinstance(values, np.ndarray):
            values = values.detach().cpu()
            if values.is_floating_point() and values.element_size() == 2:
                values = values.float()
            values = values.numpy()
        if self.layout is None:
            return np.asarray(values[..., None])
        return np.asarray(values.transpose(1, 2, 0) if self.layout == FIRST else values)


def check_layout(layout: Any) -> str | None:
    """Return a place of channels, given by name or enumeration member, or None; raise InputError for another."""
    name = getattr(layout, "value", layout)
    if name in (None, FIRST, LAST, "none"):
        return None if name is None else str(name)
    raise InputError(f"A data format is {FIRST!r}, {LAST!r} or None; got {short(layout)}.")


def to_levels(values: Array, *, fractions: bool = False) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], bool]:
    """Convert an array of any type to whole numbers 0…255.

    The range follows from the values, as in transformers: whole numbers up to 255 are levels, fractions up to 1 are
    multiplied by 255 and truncated. Unsigned 16-bit numbers above 255 are scaled down.

    Args:
        values: (H,W,C).
        fractions: floating numbers from 0 to 1 are fractions even if all are 0 or 1, and are rounded.

    Returns:
        The levels as uint8, and whether the numbers were fractions from 0 to 1.

    Raises:
        ImageError: numbers of another range.
    """
    if values.dtype == np.uint8:
        return values, False
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), True
    if values.size == 0 or values.dtype.kind not in "iuf":
        raise ImageError(f"An image's array holds real numbers; got {values.dtype} of shape {values.shape}.")
    low, high = float(values.min()), float(values.max())
    if fractions and values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(values.astype(np.float32) * 255).astype(np.uint8), True
    whole = values.dtype.kind in "iu" or bool(np.allclose(values, np.trunc(values)))
    if whole and low >= 0 and high <= 255:
        return values.astype(np.uint8), False
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8), False
    if low >= 0 and high <= 1:
        return (values.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), True
    raise ImageError(
        f"An image's numbers are whole ones from 0 to 255 or fractions from 0 to 1; got {values.dtype} "
        f"from {low:g} to {high:g}."
    )
