"""A conversation's ids from the grids of its prepared images, so that an image is prepared once in a conversation.

`PixtralProcessor.apply_chat_template(tokenize=True)` gives the same ids, and prepares every image each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail.errors import PromptError
from vitrail.images.fingerprint import fingerprint
from vitrail.processor.processor import PixtralProcessor
from vitrail.prompts.messages import ImagePart, Message

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.images.batch_feature import BatchFeature


class PreparedImage:
    """An image as the image processor makes it.

    size: (height, width) in pixels; grid: its rows and columns of image tokens; tokens: what it costs in ids,
    image_tokens of which are the image token; key: the fingerprint of its pixels. The pixels are kept where they take no
    more memory than the image that they are made of, else until they are first asked for, and made anew after that.
    """

    def __init__(self, processor: PixtralProcessor, source: Any, options: Mapping[str, Any]) -> None:
        from vitrail.images.load import load_image

        self._processor, self._options = processor, options
        image = load_image(source)
        made = self._prepare(image)
        (self.grid,) = made.grids
        self.size = (self.grid.height, self.grid.width)
        self.tokens, self.image_tokens = self.grid.tokens, self.grid.image_tokens
        pixels: Tensor = made["pixel_values"][0]
        self._pixels: Tensor | None = pixels
        # PIL keeps four bytes of a pixel.
        self._image = None if pixels.nbytes <= 4 * image.width * image.height else image
        self.key = fingerprint(pixels)

    def pixels(self) -> Tensor:
        """(3, H, W)."""
        if self._pixels is None:
            made: Tensor = self._prepare(self._image)["pixel_values"][0]
            return made
        kept = self._pixels
        if self._image is not None:
            self._pixels = None
        return kept

    def _prepare(self, image: Any) -> BatchFeature:
        return self._processor.prepare_images([image], **self._options)


def lay_out(
    processor: Any, messages: Sequence[Message], **options: Any
) -> tuple[list[int], list[PreparedImage]]:
    """One conversation → its ids, and its images in their order.

    processor: a PixtralProcessor, or the tokenizer of a checkpoint that reads text only. messages: normalised ones whose
    images have a PreparedImage as their source. options: those of apply_chat_template that shape the prompt.
    Raises PromptError as that does.
    """
    options.setdefault("add_generation_prompt", True)
    if not isinstance(processor, PixtralProcessor):
        if any(message.images for message in messages):
            raise PromptError("this checkpoint reads text only; it cannot be shown images")
        encoded = processor.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
        row = encoded["input_ids"]
        return list(row[0]) if row and isinstance(row[0], (list, tuple)) else list(row), []
    chat = processor.render_chat(list(messages), **options)
    images = [_prepared(part) for parts in chat.images for part in parts]
    encoded = processor.encode_prompts(chat.prompts, [image.grid for image in images])
    return list(encoded["input_ids"][0]), images


def _prepared(part: ImagePart) -> PreparedImage:
    if not isinstance(part.source, PreparedImage):
        raise PromptError("an image of this conversation was not prepared")
    return part.source
