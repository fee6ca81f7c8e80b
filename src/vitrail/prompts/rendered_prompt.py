"""RenderedPrompt: a prompt's text with the origin of each part; PromptText: its public `str` form.

Inside the package a prompt is a RenderedPrompt, which is no `str`: without slices and sums its spans cannot get lost
silently. `apply_chat_template(tokenize=False)` returns a `str` in transformers, for stripping, printing and JSON;
there, and only there, the prompt becomes a PromptText, an ordinary `str` with the RenderedPrompt in `.rendered`, which
the calls of tokenizers and processors use. A slice, a sum or a stripped copy of a PromptText is a plain `str`: a prompt
of one author, in which every control token counts.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from vitrail.prompts.control_pattern import control_pattern

if TYPE_CHECKING:
    from vitrail.images.grid import Grid

_BLANK = "\uffff"  # a noncharacter, part of no control token


class Span(NamedTuple):
    """A part of a prompt's text and its origin.

    Attributes:
        start: First character.
        stop: Character after the last one.
        kind: "control": a control token of the template or the format; "image": the tokens of an image; "user":
            characters that are never part of a control token; "trusted": text of the prompt's only author, in which
            control tokens are recognised.
        tokens: Number of the prompt's own control tokens in it.
    """

    start: int
    stop: int
    kind: Literal["control", "image", "user", "trusted"]
    tokens: int = 0


Place: TypeAlias = tuple[int, int]
"""Where something starts and stops in a text."""


@dataclass(frozen=True, eq=False, repr=False)
class RenderedPrompt:
    """A prompt. Equal to the `str` of its text, and to another prompt with the same text and spans.

    Attributes:
        text: The whole text.
        spans: Spans in order; text outside of them is the template's own.
        answers: Places of the assistant's text; None without `return_assistant_tokens_mask`.
    """

    text: str
    spans: tuple[Span, ...] = ()
    answers: tuple[Place, ...] | None = None

    @classmethod
    def trusted(cls, text: str) -> RenderedPrompt:
        """Build the prompt of a text by one author, in which control tokens are recognised."""
        return cls(text, (Span(0, len(text), "trusted"),))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self.text == other
        if not isinstance(other, RenderedPrompt):
            return NotImplemented
        return type(self) is type(other) and (self.text, self.spans) == (other.text, other.spans)

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def is_trusted(self) -> bool:
        """Whether the prompt is a text of one author."""
        return bool(self.spans) and self.spans[0].kind == "trusted"

    @property
    def marks_answers(self) -> bool:
        """Whether the ids come with a mask of the assistant's text."""
        return self.answers is not None

    @property
    def from_messages(self) -> bool:
        """Whether the prompt consists of turns, which truncation can leave out."""
        return False

    @property
    def sources(self) -> list[Any]:
        """Sources of the prompt's images, in order; [] if they are not recorded."""
        return []

    @property
    def scanned_text(self) -> str:
        """The text that a tokenizer encodes at once; "" for a prompt that is encoded piece by piece."""
        return self.text

    @cached_property
    def readable(self) -> str:
        """The text with user characters blanked out: its control tokens are the prompt's own."""
        parts: list[str] = []
        end = 0
        for span in self.spans:
            if span.kind == "user":
                parts += (self.text[end : span.start], _BLANK * (span.stop - span.start))
                end = span.stop
        return "".join((*parts, self.text[end:]))

    @property
    def own_controls(self) -> int:
        """Number of the prompt's own control tokens, including those of images."""
        return sum(span.tokens for span in self.spans)

    def controls(self) -> list[str]:
        """Return the prompt's own control tokens in order, without those of images."""
        return [self.text[span.start : span.stop] for span in self.spans if span.kind == "control"]

    def holds_typed_controls(self, names: tuple[str, ...]) -> bool:
        """Return whether the bare text contains control tokens of these names that are not the prompt's own."""
        if self.readable == self.text:
            return False
        found = control_pattern(names).finditer(self.text)
        return any(not self.readable.startswith(match.group(), match.start()) for match in found)

    def count_images(self, image_token: str) -> int:
        """Return the number of images, each of them one token before `with_grids`."""
        return self.readable.count(image_token)

    def count_image_tokens(self, image_token: str) -> int:
        """Return the number of image tokens; complete after `with_grids`."""
        return self.readable.count(image_token)

    def with_grids(self, grids: Iterator[Grid], tokens: tuple[str, str, str]) -> RenderedPrompt:
        """Return the prompt with each of its own image tokens expanded to the tokens of the next grid.

        Args:
            grids: Grids of patches, one for each image in order.
            tokens: Names of the image, break and end tokens.
        """
        marks = [match.start() for match in re.finditer(re.escape(tokens[0]), self.readable)]
        if not marks:
            return self
        sized = {mark: next(grids) for mark in marks}
        parts: list[str] = []
        growth = [0]  # in characters, of the text before each mark and of the whole
        end = 0
        for mark, grid in sized.items():
            written = "".join(grid.expand(*tokens))
            parts += (self.text[end:mark], written)
            end = mark + len(tokens[0])
            growth.append(growth[-1] + len(written) - len(tokens[0]))

        def shifted(place: int) -> int:
            return place + growth[bisect_left(marks, place)]

        def moved(span: Span) -> Span:
            start, stop = shifted(span.start), shifted(span.stop)
            if span.kind == "control" and span.start in sized:
                return Span(start, stop, "image", sized[span.start].tokens)
            return span._replace(start=start, stop=stop)

        answers = self.answers and tuple((shifted(start), shifted(stop)) for start, stop in self.answers)
        return RenderedPrompt("".join((*parts, self.text[end:])), tuple(map(moved, self.spans)), answers)

    def with_aliases(self, aliases: Mapping[str, str]) -> str:
        """Return the bare text with the prompt's own control tokens, and only those, replaced by `aliases`."""
        return self.aliased(aliases)[0]

    def aliased(self, aliases: Mapping[str, str]) -> tuple[str, Callable[[int], int]]:
        """Return `with_aliases`, and a function from positions in it to positions in `text`."""
        pattern = control_pattern(tuple(aliases))
        parts: list[str] = []
        stops: list[int] = []  # ends of aliases
        growth = [0]  # in characters, of the text before each alias and of the whole
        end = 0
        for span in self.spans:
            for match in pattern.finditer(self.text, span.start, span.stop) if span.tokens else ():
                alias = aliases[match.group()]
                parts += (self.text[end : match.start()], alias)
                end = match.end()
                growth.append(growth[-1] + len(alias) - len(match.group()))
                stops.append(end + growth[-1])
        return "".join((*parts, self.text[end:])), lambda place: place - growth[bisect_right(stops, place)]

    def answer_mask(self, offsets: Sequence[Place]) -> list[int]:
        """Return 1 for each id of the assistant's text, 0 for every other.

        Args:
            offsets: Start and stop of each id's text, in characters; (0, 0) for an id without text.

        Returns:
            The mask: in each answer, 1 from the first to the last id with a character of it.
        """
        mask = [0] * len(offsets)
        for start, stop in self.answers or ():
            found = [place for place, (first, last) in enumerate(offsets) if first < stop and start < last]
            if found:
                mask[found[0] : found[-1] + 1] = [1] * (found[-1] + 1 - found[0])
        return mask


class PromptText(str):
    """The `str` of a prompt, with the RenderedPrompt in `rendered` (see the module docstring)."""

    rendered: RenderedPrompt

    def __new__(cls, rendered: RenderedPrompt) -> PromptText:
        self = super().__new__(cls, rendered.text)
        self.rendered = rendered
        return self

    def __getnewargs__(self) -> tuple[RenderedPrompt]:  # type: ignore[override]
        return (self.rendered,)


def opened(text: Any) -> Any:
    """Return the prompt of a PromptText; any other value unchanged."""
    return text.rendered if isinstance(text, PromptText) else text


def as_prompt(text: str | RenderedPrompt) -> RenderedPrompt:
    """Return the prompt of a PromptText; any other `str` as a prompt of one author."""
    found = opened(text)
    return found if isinstance(found, RenderedPrompt) else RenderedPrompt.trusted(found)
