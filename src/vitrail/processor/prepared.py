"""PreparedImage: an image prepared once per conversation, and the conversation's ids from the images' grids.

`PixtralProcessor.apply_chat_template(tokenize=True)` returns the same ids, but prepares every image on each call.
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
    """Output of the image processor for one image.

    The pixels are kept where they take no more memory than the source image; else until their first use, and are
    recomputed after that.

    Attributes:
        size: (height, width) in pixels.
        grid: rows and columns of image tokens.
        tokens: number of ids in the prompt.
        image_tokens: how many of them are the image token.
        key: fingerprint of the pixels.
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
        # PIL takes four bytes per pixel.
        self._image = None if pixels.nbytes <= 4 * image.width * image.height else image
        self.key = fingerprint(pixels)

    def pixels(self) -> Tensor:
        """Return the pixels (3, H, W)."""
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
    """Return the ids of one conversation, and its images in order.

    Args:
        processor: a PixtralProcessor, or the tokenizer of a text-only checkpoint.
        messages: normalised messages whose images have a PreparedImage as their source.
        options: those of apply_chat_template that shape the prompt.

    Raises:
        PromptError: as apply_chat_template, and for images in a text-only checkpoint.
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
