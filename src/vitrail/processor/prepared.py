"""A conversation's ids from the sizes of its prepared pictures, so that a picture is prepared once in a conversation.

`PixtralProcessor.apply_chat_template(tokenize=True)` gives the same ids, and prepares every picture each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail.errors import PromptError
from vitrail.images.fingerprint import fingerprint
from vitrail.processor.processor import PixtralProcessor
from vitrail.prompts.builtin.encode_chat import place_pictures
from vitrail.prompts.messages import ImagePart, Message

if TYPE_CHECKING:
    from torch import Tensor


class PreparedPicture:
    """A picture as the image processor makes it.

    size: (height, width) in pixels; tokens: what it costs in ids, image_tokens of which are the image token; key: the
    fingerprint of its pixels. The pixels themselves are kept until they are first asked for, and made anew after that.
    """

    def __init__(self, processor: PixtralProcessor, source: Any, options: Mapping[str, Any]) -> None:
        from vitrail.images.load import load_image

        self._processor, self._options = processor, options
        self._picture = load_image(source)
        self._pixels: Tensor | None = self._make()
        self.size = (int(self._pixels.shape[1]), int(self._pixels.shape[2]))
        grid = processor._grid(*self.size)
        self.tokens, self.image_tokens = grid.tokens, grid.image_tokens
        self.key = fingerprint(self._pixels)

    def pixels(self) -> Tensor:
        """(3, H, W)."""
        made, self._pixels = self._pixels, None
        return self._make() if made is None else made

    def _make(self) -> Tensor:
        made: Tensor = self._processor._process_images([self._picture], dict(self._options))["pixel_values"][
            0
        ]
        return made


def lay_out(
    processor: Any, messages: Sequence[Message], **options: Any
) -> tuple[list[int], list[PreparedPicture]]:
    """One conversation → its ids, and its pictures in their order.

    processor: a PixtralProcessor, or the tokenizer of a checkpoint that reads text only. messages: normalised ones whose
    pictures have a PreparedPicture as their source. options: those of apply_chat_template that shape the prompt.
    Raises PromptError as that does.
    """
    options.setdefault("add_generation_prompt", True)
    if not isinstance(processor, PixtralProcessor):
        if any(message.images for message in messages):
            raise PromptError("this checkpoint reads text only; it cannot be shown pictures")
        encoded = processor.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
        row = encoded["input_ids"]
        return list(row[0]) if row and isinstance(row[0], (list, tuple)) else list(row), []
    chat = processor._render(list(messages), options.pop("chat_template", None), options)
    pictures = [_prepared(part) for parts in chat.pictures for part in parts]
    texts = processor._read(list(chat.prompts))
    processor._check_counts(texts, None, len(pictures))
    grids = [processor._grid(*picture.size) for picture in pictures]
    prompts = place_pictures(texts, processor.image_token, grids, processor._expansion)
    bos = processor.tokenizer.bos_token
    opened = bos is not None and chat.prompts[0].startswith(bos)
    encoded = processor._tokenize(prompts, {"add_special_tokens": False} if opened else {})
    return list(encoded["input_ids"][0]), pictures


def _prepared(part: ImagePart) -> PreparedPicture:
    if not isinstance(part.source, PreparedPicture):
        raise PromptError("a picture of this conversation was not prepared")
    return part.source
