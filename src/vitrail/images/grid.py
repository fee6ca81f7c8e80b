"""Grid: size of a resized image and number of its tokens; arithmetic on sizes only.

All sizes are (height, width) in pixels. A token covers a square of patch_size · merge pixels. The dialects
differ in the rounding of a side after an image is shrunk to the longest edge:

    hf        down          transformers since 4.50, and the default here
    hf-ceil   up            transformers up to 4.49
    mistral   to even       mistral-common (Python's round)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, get_args

from vitrail.arguments import checked, short
from vitrail.configs.fields import CELL_LIMIT, COUNT_LIMIT
from vitrail.errors import ImageError, InputError

Dialect = Literal["hf", "hf-ceil", "mistral"]
Sides = int | tuple[int, int]
_Token = TypeVar("_Token", str, int)

DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)
_ROUNDING: Final[dict[Dialect, Callable[[float], int]]] = {
    "hf": math.floor,
    "hf-ceil": math.ceil,
    "mistral": round,
}


@dataclass(frozen=True, slots=True)
class Grid:
    """An image after resizing: its size in pixels and its rows and columns of [IMG] tokens."""

    height: int
    width: int
    rows: int
    cols: int

    @classmethod
    def of_size(cls, height: int, width: int, cell: int) -> "Grid":
        """Return the grid of a size without resizing: one token for each whole cell × cell square of it.

        Sizes in pixels have cells of patch_size · merge pixels, sizes in patches cells of `merge` patches.
        """
        return cls(height, width, height // cell, width // cell)

    @property
    def image_tokens(self) -> int:
        """Number of [IMG] tokens, which is that of the image features."""
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        """Number of ids in the prompt: each row ends with [IMG_BREAK], the last one with [IMG_END]."""
        return self.rows * (self.cols + 1)

    def expand(self, image: _Token, row_end: _Token, image_end: _Token) -> list[_Token]:
        """Return the image's names or ids in order: rows of image tokens, each with its end.

        See docs/formats.md, "Tokens of an image".
        """
        expanded = ([image] * self.cols + [row_end]) * self.rows
        expanded[-1] = image_end
        return expanded

    def check_whole(self, cell: int) -> None:
        """Raise InputError unless the image consists of whole squares of `cell` pixels, as after resizing."""
        if (self.rows * cell, self.cols * cell) != (self.height, self.width):
            raise InputError(
                f"an image of {self.width}×{self.height} pixels (width×height) is not made of whole squares of "
                f"{cell}; leave do_resize on"
            )


@checked
def image_grid(
    height: int,
    width: int,
    *,
    patch_size: Sides = 16,
    merge: int = 1,
    longest_edge: Sides = 1024,
    dialect: Dialect = "hf",
    max_image_tokens: int | None = None,
) -> Grid:
    """Return the grid of an image of (height, width) pixels (docs/formats.md, "Resizing and normalising").

    Args:
        height, width: size of the image in pixels.
        patch_size: side of a patch, or its (height, width).
        merge: patches per token along each side.
        longest_edge: box (n, n) or (height, width) into which larger images are shrunk; images never grow, except up to
            the next whole token. Each side keeps at least one token, as in mistral-common, where transformers would
            compute zero rows.
        dialect: rounding of a side.
        max_image_tokens: the most ids (`Grid.tokens`) of the image; it is shrunk further to fit.

    Raises:
        ImageError: an image without pixels.
        InputError: a setting that cannot be used.
    """
    if height < 1 or width < 1:
        raise ImageError(f"An image has at least 1×1 pixels; this one has {height}×{width} (height×width).")
    box = _sides(longest_edge, "longest_edge")
    cell = _sides(patch_size, "patch_size")
    step = _positive(merge, "merge")
    cell = (cell[0] * step, cell[1] * step)
    if max(cell) > CELL_LIMIT:
        raise InputError(f"patch_size · merge is at most {CELL_LIMIT:,} pixels; got {short(max(cell))}.")
    checked = check_dialect(dialect)
    grid = _grid_in_box(height, width, box, cell, checked)
    if max_image_tokens is None or grid.tokens <= check_budget(max_image_tokens):
        return grid
    # The number of tokens only grows with the edge: bisect for the largest edge within the budget.
    fits, exceeds = 0, max(box)
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        smaller = (min(box[0], middle), min(box[1], middle))
        if _grid_in_box(height, width, smaller, cell, checked).tokens <= max_image_tokens:
            fits = middle
        else:
            exceeds = middle
    edge = max(fits, 1)
    return _grid_in_box(height, width, (min(box[0], edge), min(box[1], edge)), cell, checked)


@checked
def image_tokens(
    height: int,
    width: int,
    *,
    patch_size: Sides = 16,
    merge: int = 1,
    longest_edge: Sides = 1024,
    dialect: Dialect = "hf",
    max_image_tokens: int | None = None,
) -> int:
    """Return the number of ids of an image of (height, width) pixels: its [IMG], [IMG_BREAK] and [IMG_END].

    The defaults are those of Pixtral 12B and Pixtral Large; for Mistral Small 3.1 and its relatives give
    patch_size=14, merge=2, longest_edge=1540. Arguments and errors are those of `image_grid`.

    >>> image_tokens(768, 1024)
    3120
    """
    return image_grid(
        height,
        width,
        patch_size=patch_size,
        merge=merge,
        longest_edge=longest_edge,
        dialect=dialect,
        max_image_tokens=max_image_tokens,
    ).tokens


def check_dialect(dialect: str) -> Dialect:
    """Return `dialect` if it is one of the three names; else raise InputError."""
    if dialect not in DIALECTS:
        raise InputError(f"dialect is one of {', '.join(DIALECTS)}; got {short(dialect)}.")
    return dialect


def check_budget(max_image_tokens: int) -> int:
    """Return `max_image_tokens` if an image can be that small; else raise InputError."""
    if _positive(max_image_tokens, "max_image_tokens") < 2:
        raise InputError(f"max_image_tokens is at least 2 ([IMG] and [IMG_END]); got {max_image_tokens}.")
    return max_image_tokens


def _grid_in_box(
    height: int, width: int, box: tuple[int, int], cell: tuple[int, int], dialect: Dialect
) -> Grid:
    ratio = max(height / box[0], width / box[1])
    if ratio > 1:
        rounded = _ROUNDING[dialect]
        height, width = max(rounded(height / ratio), 1), max(rounded(width / ratio), 1)
    rows, cols = (height - 1) // cell[0] + 1, (width - 1) // cell[1] + 1
    return Grid(rows * cell[0], cols * cell[1], rows, cols)


def _sides(value: Sides, name: str) -> tuple[int, int]:
    if isinstance(value, tuple):
        if len(value) != 2:
            raise InputError(f"{name} is a number of pixels or (height, width); got {short(value)}.")
        return _positive(value[0], name), _positive(value[1], name)
    side = _positive(value, name)
    return side, side


def _positive(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= COUNT_LIMIT:
        raise InputError(f"{name} is a whole number from 1 to {COUNT_LIMIT:,}; got {short(value)}.")
    return value
