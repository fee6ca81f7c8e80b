"""RenderedPrompt: a prompt's text and who wrote which part of it; PromptText, the `str` that users get of it. No ids.

Inside the package a prompt is a RenderedPrompt, which is no `str`: it cannot be sliced or joined, so nothing drops its
spans unseen. transformers promises a `str` from `apply_chat_template(tokenize=False)`, and people strip it, print it and
write it as JSON; there, and only there, it is handed out as a PromptText, an ordinary `str` with the prompt beside it in
`.rendered`. The calls of tokenizers and processors take that up again. Whatever is made of a PromptText (a slice, a
sum, a stripped copy) is a plain `str`, and is read as a prompt of one author, in which every control token counts.
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

_BLANK = "\uffff"  # a noncharacter, of which no control token is made


class Span(NamedTuple):
    """A part of a prompt's text, and what stands there.

    control: a control token that the template or the format wrote. image: the tokens of an image. user: characters of
    somebody's text that are never read as a part of a control token. trusted: text of the prompt's only author, in which
    control tokens are recognised. tokens: how many control tokens of the prompt's own it holds.
    """

    start: int
    stop: int
    kind: Literal["control", "image", "user", "trusted"]
    tokens: int = 0


Place: TypeAlias = tuple[int, int]
"""Where something starts and stops in a text."""


@dataclass(frozen=True, eq=False, repr=False)
class RenderedPrompt:
    """A prompt: its text, and spans in order; what lies in none was written by the template.

    answers: where the assistant's words stand; None: that was not asked for.

    It equals the `str` of its text, and another prompt of the same text and spans.
    """

    text: str
    spans: tuple[Span, ...] = ()
    answers: tuple[Place, ...] | None = None

    @classmethod
    def trusted(cls, text: str) -> RenderedPrompt:
        """A text that one author wrote as a whole prompt: its control tokens are recognised."""
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
        """Whether it is a text of one author."""
        return bool(self.spans) and self.spans[0].kind == "trusted"

    @property
    def marks_answers(self) -> bool:
        """Whether its ids come with a mask of the assistant's words."""
        return self.answers is not None

    @property
    def from_messages(self) -> bool:
        """Whether it is made of turns that can be left out where it is too long."""
        return False

    @property
    def sources(self) -> list[Any]:
        """Where the images that it was made with come from, in order; [] where that is not kept."""
        return []

    @property
    def scanned_text(self) -> str:
        """What a tokenizer encodes as one text; "" for a prompt that is encoded piece by piece."""
        return self.text

    @cached_property
    def readable(self) -> str:
        """The text with users' characters blanked out: control tokens that are found in it are none of theirs."""
        parts: list[str] = []
        end = 0
        for span in self.spans:
            if span.kind == "user":
                parts += (self.text[end : span.start], _BLANK * (span.stop - span.start))
                end = span.stop
        return "".join((*parts, self.text[end:]))

    @property
    def own_controls(self) -> int:
        """How many control tokens the template or the format wrote, those of images included."""
        return sum(span.tokens for span in self.spans)

    def controls(self) -> list[str]:
        """The control tokens that the template or the format wrote, in order, without those of images."""
        return [self.text[span.start : span.stop] for span in self.spans if span.kind == "control"]

    def holds_typed_controls(self, names: tuple[str, ...]) -> bool:
        """Whether the bare text spells control tokens of these names that the template did not write."""
        if self.readable == self.text:
            return False
        found = control_pattern(names).finditer(self.text)
        return any(not self.readable.startswith(match.group(), match.start()) for match in found)

    def count_images(self, image_token: str) -> int:
        """How many images it shows, each of them one token before `with_grids`."""
        return self.readable.count(image_token)

    def count_image_tokens(self, image_token: str) -> int:
        """How many image tokens it has, once its images are written out."""
        return self.readable.count(image_token)

    def with_grids(self, grids: Iterator[Grid], tokens: tuple[str, str, str]) -> RenderedPrompt:
        """The prompt with the tokens of the next of `grids` in place of each image token that no user typed.

        tokens: the names of the image, break and end tokens.
        """
        marks = [match.start() for match in re.finditer(re.escape(tokens[0]), self.readable)]
        if not marks:
            return self
        sized = {mark: next(grids) for mark in marks}
        parts: list[str] = []
        growth = [0]  # of the text before each mark, and of the whole
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
        """The bare text with the template's control tokens, and only those, replaced by `aliases`."""
        return self.aliased(aliases)[0]

    def aliased(self, aliases: Mapping[str, str]) -> tuple[str, Callable[[int], int]]:
        """`with_aliases`, and what turns a place in that text into the place in `text`."""
        pattern = control_pattern(tuple(aliases))
        parts: list[str] = []
        stops: list[int] = []  # of aliases
        growth = [0]  # of the text before each of them, and of the whole
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
        """1 for the ids of the assistant's words, 0 for others. offsets: where each id's text stands; (0, 0) if nowhere.

        Of every answer, all from the first to the last id that has a character of it.
        """
        mask = [0] * len(offsets)
        for start, stop in self.answers or ():
            found = [place for place, (first, last) in enumerate(offsets) if first < stop and start < last]
            if found:
                mask[found[0] : found[-1] + 1] = [1] * (found[-1] + 1 - found[0])
        return mask


class PromptText(str):
    """The `str` of a prompt, with the prompt beside it in `rendered`; see this file's first lines."""

    rendered: RenderedPrompt

    def __new__(cls, rendered: RenderedPrompt) -> PromptText:
        self = super().__new__(cls, rendered.text)
        self.rendered = rendered
        return self

    def __getnewargs__(self) -> tuple[RenderedPrompt]:  # type: ignore[override]
        return (self.rendered,)


def opened(text: Any) -> Any:
    """The prompt in a PromptText; anything else as it is."""
    return text.rendered if isinstance(text, PromptText) else text


def as_prompt(text: str | RenderedPrompt) -> RenderedPrompt:
    """A prompt, or the text of one: a PromptText gives its prompt, another `str` one of one author."""
    found = opened(text)
    return found if isinstance(found, RenderedPrompt) else RenderedPrompt.trusted(found)
