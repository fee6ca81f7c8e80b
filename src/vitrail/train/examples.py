"""Examples: ids and labels of conversations, with their images. The prompt builder makes the ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vitrail.errors import ContextError, PromptError
from vitrail.images.load import load_image
from vitrail.images.request import image_request
from vitrail.processor.prompt_view import AUTO, TEMPLATE, PromptMaker
from vitrail.prompts.builtin.encode import encode_marked
from vitrail.prompts.builtin.pieces import BREAK, END, IMAGE
from vitrail.prompts.conversation_file import Conversation
from vitrail.prompts.messages import ImagePart, Message, images
from vitrail.train.conversations import Talk

if TYPE_CHECKING:
    from vitrail.images.load import PilImage

IGNORED = -100  # label of ids that are not targets


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation: `labels` has the id where it is a target, else −100; images in the order of the ids."""

    ids: list[int]
    labels: list[int]
    images: list[PilImage] = field(default_factory=list)

    @property
    def learned(self) -> int:
        """Number of target ids. The first id of a conversation has no context to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class ExampleMaker:
    """Builds examples from conversations.

    Attributes:
        maker: builds prompts.
        format: see `PromptMaker.make`.
        longest: maximum number of positions of an example.
    """

    maker: PromptMaker
    longest: int
    format: str | None = None

    def make(self, talk: Talk) -> Example:
        """Build ids, labels and images. PromptError, ImageError or ContextError without the record's position."""
        messages = [_opened(message) for message in talk.messages]
        name = self.format or (AUTO if self.maker.template is None else TEMPLATE)
        whole = Conversation(list(messages), talk.tools, reasoning_effort=talk.reasoning_effort)
        if name == TEMPLATE:
            ids, learned = self._template(whole, talk.learned)
        else:
            weighed = [
                message if weight is None else replace(message, extra={**message.extra, "weight": weight})
                for message, weight in zip(messages, talk.weights, strict=True)
            ]
            ids, learned = self._built(replace(whole, messages=weighed), talk.learned, name)
        if len(ids) > self.longest:
            raise ContextError(
                f"the conversation has {len(ids):,} positions, more than {self.longest:,}; shorten it or use "
                "smaller images"
            )
        shown = self._image_ids()
        labels = [
            index if take and index not in shown else IGNORED
            for index, take in zip(ids, learned, strict=True)
        ]
        return Example(ids, labels, [part.source for part in images(messages)])

    def _image_ids(self) -> set[int | None]:
        if self.maker.images is None:
            return set()
        find = self.maker.tokenizer.encoder.find
        return {find(name) for name in (IMAGE, BREAK, END)}

    def _built(self, whole: Conversation, learned: Sequence[bool], name: str) -> tuple[list[int], list[bool]]:
        """Build with a built-in format, which records the author of each id; only answers of equal weight are merged."""
        prompt, _ = self.maker.build(whole, name, mode="agnostic")
        marked = replace(prompt, learned=frozenset(place for place, learn in enumerate(learned) if learn))
        ids, marks = encode_marked(marked, self.maker.tokenizer.encoder)
        return ids, list(map(bool, marks))

    def _template(self, whole: Conversation, learned: Sequence[bool]) -> tuple[list[int], list[bool]]:
        """Build with a template: an answer is the text that it adds to its prompt."""
        ids = self.maker.make(whole, TEMPLATE).ids
        marks = [False] * len(ids)
        for index, answer in enumerate(learned):
            if not answer:
                continue
            before = self.maker.make(replace(whole, messages=whole.messages[:index]), TEMPLATE).ids
            after = ids
            if index + 1 < len(whole.messages):
                after = self.maker.make(replace(whole, messages=whole.messages[: index + 1]), TEMPLATE).ids
            if ids[: len(before)] != before or ids[: len(after)] != after:
                raise PromptError(
                    f"messages[{index}]: the chat template writes what comes before this answer differently once the "
                    "conversation goes on, so the answer cannot be told from the prompt; use one of Mistral's own formats "
                    "(format 'auto'), or one line per answer with 'only_last'"
                )
            marks[len(before) : len(after)] = [True] * (len(after) - len(before))
        return ids, marks


def _opened(message: Message) -> Message:
    """Return the message with decoded images, so that broken ones are found and none is opened twice.

    Decoded images are kept, so their memory counts; that of PDF pages is counted when they are rendered.
    """
    if not message.images:
        return message
    parts: list[Any] = []
    with image_request() as request:
        for part in message.content or ():
            if isinstance(part, ImagePart):
                image = load_image(part.source)
                if image is not part.source:
                    request.count_kept(image.height, image.width, "images of this conversation")
                part = replace(part, source=image)
            parts.append(part)
    return replace(message, content=tuple(parts))
