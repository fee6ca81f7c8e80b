"""lay_out: grids of images from their sizes (`size:WxH`, or the opened image's), without pixels."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from vitrail.errors import ImageError, PromptError
from vitrail.prompts.builtin.built_prompt import BuiltPrompt

if TYPE_CHECKING:
    from vitrail.images.grid import Grid
    from vitrail.prompts.messages import ImagePart

_PLACEHOLDER = re.compile(r"size:([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def lay_out(
    prompt: BuiltPrompt, grid: Callable[[int, int], Grid], *, placeholders: bool = False
) -> tuple[BuiltPrompt, list[Grid]]:
    """Expand the images of a prompt to their grids.

    Args:
        prompt: The prompt.
        grid: Maps (height, width) in pixels to the grid of patches.
        placeholders: Accept a source `size:WxH` as an image of that size in pixels.

    Returns:
        The expanded prompt, and its grids in order.

    Raises:
        PromptError: An image has no source; with its number.
        ImageError: An image cannot be opened; with its number.
    """
    grids: list[Grid] = []
    for number, part in zip(prompt.order, prompt.images, strict=True):
        try:
            grids.append(grid(*image_size(part, placeholders=placeholders)))
        except (PromptError, ImageError) as error:
            raise type(error)(f"image {number + 1} of the messages: {error}") from error
    return prompt.with_grids(iter(grids)), grids


def image_size(part: ImagePart, *, placeholders: bool = False) -> tuple[int, int]:
    """Return (height, width) in pixels of an image of the messages. Errors as `lay_out`, without the number."""
    source = part.source
    if source is None:
        raise PromptError("an image has no source; give its 'image_url', or open it beside the messages")
    if placeholders and isinstance(source, str) and source.startswith("size:"):
        match = _PLACEHOLDER.fullmatch(source)
        if match is None:
            raise PromptError(f"a size is size:WxH, each of 1 to 999999 pixels; got {source[:80]!r}")
        return int(match[2]), int(match[1])
    from vitrail.images.load import load_image

    width, height = load_image(source).size
    return height, width
