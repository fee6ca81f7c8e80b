"""Grids of pictures from their sizes alone (`size:WxH`, or of the opened picture). Prepares no pixels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vitrail.errors import PromptError
from vitrail.inputs.formats.built import BuiltPrompt

if TYPE_CHECKING:
    from vitrail.inputs.grid import Grid
    from vitrail.inputs.messages import ImagePart

_PLACEHOLDER = re.compile(r"size:([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def lay_out(
    prompt: BuiltPrompt, grid: Callable[[int, int], Grid], *, placeholders: bool = False
) -> tuple[BuiltPrompt, list[Grid]]:
    """The prompt with the grids of its pictures, and these grids in its order.

    grid: (height, width) in pixels → the grid. placeholders: whether the source `size:WxH` stands for a picture of
    that size. Raises PromptError for a picture without a source, ImageError for one that cannot be opened.
    """
    grids = [grid(*picture_size(part, placeholders=placeholders)) for part in prompt.pictures]
    rest: Iterator[Grid] = iter(grids)
    return prompt.with_grids(rest), grids


def picture_size(part: ImagePart, *, placeholders: bool = False) -> tuple[int, int]:
    """(height, width) in pixels of a picture of the messages."""
    if part.source is None:
        raise PromptError("a picture has no source; give its 'image_url', or open it beside the messages")
    match = _PLACEHOLDER.fullmatch(part.source) if isinstance(part.source, str) else None
    if match and placeholders:
        return int(match[2]), int(match[1])
    from vitrail.inputs.images import load_image

    width, height = load_image(part.source).size
    return height, width
