"""ImageSettings: the checked options of one call of an image processor: sizes, numbers and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vitrail.arguments import short
from vitrail.configs.fields import CELL_LIMIT, COUNT_LIMIT, NUMBER_LIMIT
from vitrail.errors import ImageError, InputError, UnsupportedError
from vitrail.images.arrays import check_layout
from vitrail.images.batch_feature import check_tensor_type
from vitrail.images.grid import Dialect, Grid, check_budget, check_dialect, image_grid
from vitrail.images.resize import BICUBIC, check_filter

# CLIP's statistics, the defaults of both of transformers' classes (docs/formats.md, "Resizing and normalising").
IMAGE_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD: Final = (0.26862954, 0.26130258, 0.27577711)
LONGEST_EDGE: Final = 1024
PATCH_SIZE: Final = 16

# Options of transformers' shared base that Pixtral's classes inherit: name → the values that change nothing.
# Grouping only batches transformers' resizing; padding is always done.
INERT: Final[dict[str, tuple[Any, ...]]] = {
    "crop_size": (),
    "default_to_square": (True,),
    "disable_grouping": (True, False),
    "do_center_crop": (False,),
    "do_pad": (True,),
    "pad_size": (),
}


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """The checked options of one call. box and patch are (height, width) in pixels."""

    do_resize: bool
    box: tuple[int, int]
    patch: tuple[int, int]
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    do_convert_rgb: bool
    return_tensors: str | None
    data_format: str | None
    input_data_format: str | None
    dialect: Dialect
    max_image_tokens: int | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ImageSettings:
        """Check every option. Raises InputError or UnsupportedError with the option's name."""
        refuse_inert(options)
        size = as_size(options["size"])
        budget = options["max_image_tokens"]
        layout = check_layout(options["data_format"])
        if layout == "none":
            raise InputError("data_format is 'channels_first', 'channels_last' or None; got 'none'.")
        do_resize = _flag(options, "do_resize")
        resample, dialect = check_filter(options["resample"]), check_dialect(options["dialect"])
        if budget is not None and not do_resize:
            raise InputError(
                "max_image_tokens shrinks images, which do_resize=False forbids; give one of them."
            )
        if dialect == "mistral" and resample != BICUBIC:
            raise InputError("dialect='mistral' resizes in its own cubic way; leave resample at bicubic.")
        return cls(
            do_resize=do_resize,
            box=(size["longest_edge"],) * 2 if "longest_edge" in size else (size["height"], size["width"]),
            patch=_height_width(as_patch_size(options["patch_size"])),
            resample=resample,
            do_rescale=_flag(options, "do_rescale"),
            rescale_factor=_numbers(options, "rescale_factor", one=True)[0],
            do_normalize=_flag(options, "do_normalize"),
            image_mean=_numbers(options, "image_mean"),
            image_std=_numbers(options, "image_std", nonzero=True),
            do_convert_rgb=_flag(options, "do_convert_rgb"),
            return_tensors=check_tensor_type(options["return_tensors"]),
            data_format=layout,
            input_data_format=check_layout(options["input_data_format"]),
            dialect=dialect,
            max_image_tokens=None if budget is None else check_budget(budget),
        )

    def grid(self, height: int, width: int) -> Grid:
        """Return the grid of an image of (height, width); without resizing, of that size.

        Raises:
            ImageError: nothing would be left of the shorter side. (transformers makes an image of no rows and fails;
                `image_grid` alone would stretch it to one token.)
        """
        if not self.do_resize:
            rows, cols = -(-height // self.patch[0]), -(-width // self.patch[1])
            return Grid(height, width, rows, cols)
        ratio = max(height / self.box[0], width / self.box[1])
        if min(height, width) < ratio:
            raise ImageError(
                f"An image of {width}×{height} pixels (width×height), shrunk to the largest size of "
                f"{self.box[1]}×{self.box[0]}, keeps less than one pixel of its shorter side. Crop it first."
            )
        return image_grid(
            height,
            width,
            patch_size=self.patch,
            longest_edge=self.box,
            dialect=self.dialect,
            max_image_tokens=self.max_image_tokens,
        )

    @property
    def changes_values(self) -> bool:
        """Whether values become float32; else whole numbers stay as they are."""
        return self.do_rescale or self.do_normalize

    @property
    def itemsize(self) -> int:
        """Bytes of a value that was a whole number."""
        return 4 if self.changes_values or self.dialect == "mistral" else 1

    def table(self, fractions: bool) -> np.ndarray[Any, np.dtype[Any]]:
        """Return the values (3, 256) of the levels 0…255 in each channel; uint8 if nothing changes, else float32.

        An image has at most 256 levels, so transformers' arithmetic is done once for each, step by step in its own
        types, and the results are looked up. fractions: the levels stand for n/255.
        """
        values: np.ndarray[Any, np.dtype[Any]] = np.arange(256, dtype=np.uint8)
        if fractions:
            values = (values * np.float64(1 / 255)).astype(np.float32)
        if self.do_rescale:
            values = (values * np.float64(self.rescale_factor)).astype(np.float32)
        if not self.do_normalize:
            return np.stack([values] * 3)
        return np.stack([self._normalized(values.astype(np.float32), channel) for channel in range(3)])

    def apply(self, values: np.ndarray[Any, np.dtype[Any]], channel: int) -> np.ndarray[Any, np.dtype[Any]]:
        """Rescale and normalise real values of one channel, in float32."""
        values = values.astype(np.float32)
        if self.do_rescale:
            values *= np.float32(self.rescale_factor)
        return self._normalized(values, channel) if self.do_normalize else values

    def _normalized(
        self, values: np.ndarray[Any, np.dtype[Any]], channel: int
    ) -> np.ndarray[Any, np.dtype[Any]]:
        return np.asarray(
            (values - np.float32(self.image_mean[channel])) / np.float32(self.image_std[channel])
        )


def refuse_inert(options: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for an inherited option with a value that would change the result."""
    for name, harmless in INERT.items():
        value = options.get(name)
        if value is not None and value not in harmless:
            raise UnsupportedError(
                f"{name}={short(value)} is not supported by Pixtral's image processors; leave it out."
            )


def as_size(size: Any) -> dict[str, int]:
    """Return `size` as {"longest_edge": n} or {"height": h, "width": w}; a number is a longest edge."""
    given = _as_dict(size, "size", lambda n: {"longest_edge": n})
    if set(given) not in ({"longest_edge"}, {"height", "width"}):
        raise InputError(
            f"size holds 'longest_edge', or 'height' and 'width', in pixels; got {short(sorted(map(str, given)))}."
        )
    return given


def as_patch_size(patch_size: Any) -> dict[str, int]:
    """Return `patch_size` as {"height": h, "width": w}; a number is both."""
    given = _as_dict(patch_size, "patch_size", lambda n: {"height": n, "width": n})
    if set(given) != {"height", "width"}:
        raise InputError(
            f"patch_size holds 'height' and 'width', in pixels; got {short(sorted(map(str, given)))}."
        )
    return given


def _as_dict(value: Any, name: str, from_number: Any) -> dict[str, int]:
    if isinstance(value, int):
        value = from_number(value)
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is a number of pixels or a dict of them; got {short(value)}.")
    # transformers keeps unused names of a size in the same object, as None.
    given = {str(key): side for key, side in value.items() if side is not None}
    for key, side in given.items():
        # A small image is padded to whole patches, and never enlarged to a size.
        most = CELL_LIMIT if name == "patch_size" else COUNT_LIMIT
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= most:
            raise InputError(f"{name}[{key!r:.40}] is a whole number from 1 to {most:,}; got {short(side)}.")
    return given


def _height_width(sides: Mapping[str, int]) -> tuple[int, int]:
    return sides["height"], sides["width"]


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options[name]
    if not isinstance(value, (bool, int)):
        raise InputError(f"{name} is True or False; got {short(value)}.")
    return bool(value)


def _numbers(
    options: Mapping[str, Any], name: str, *, one: bool = False, nonzero: bool = False
) -> tuple[float, ...]:
    """Return one number, or three of them (a single number counts for each channel)."""
    value = options[name]
    count = 1 if one else 3
    values = [value] * count if isinstance(value, (int, float)) else value
    try:
        numbers = tuple(float(number) for number in values[: count + 1])
    except (
        TypeError,
        ValueError,
        OverflowError,
        KeyError,
        RuntimeError,
    ) as error:  # RuntimeError: a sparse tensor
        wanted = "a number" if one else "a number or three"
        raise InputError(f"{name} is {wanted}; got {short(value)}.") from error
    if not all(-NUMBER_LIMIT <= number <= NUMBER_LIMIT for number in numbers):  # false for NaN too
        raise InputError(f"{name} is finite and at most {NUMBER_LIMIT:g}; got {short(value)}.")
    if len(numbers) != count or (nonzero and 0.0 in numbers):
        raise InputError(
            f"{name} is {'one number' if one else 'three numbers, none of them 0'}; got {short(value)}."
        )
    return numbers
