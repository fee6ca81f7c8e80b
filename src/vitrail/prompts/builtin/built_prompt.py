"""BuiltPrompt: a prompt in a built-in format, with its pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vitrail.prompts.builtin.pieces import BREAK, END, IMAGE, Control, Image, Piece, Section, Text
from vitrail.prompts.rendered_prompt import RenderedPrompt, Span

if TYPE_CHECKING:
    from vitrail.images.grid import Grid
    from vitrail.prompts.messages import ImagePart


@dataclass(frozen=True, eq=False, repr=False)
class BuiltPrompt(RenderedPrompt):
    """A prompt that is encoded from its pieces, so that no text becomes a control token. Built by `of`.

    Attributes:
        sections: Its turns, after a section with the begin token.
        images: The image parts of the messages, in the order of the prompt.
        spaced: Whether `text` shows the spaces that the tokenizer puts before texts.
        droppable: Whether the format has a rule for leaving out the oldest turns.
        dropped: Places of the messages that were left out.
        learned: Places of the assistant's messages in the mask; None without `return_assistant_tokens_mask`.
    """

    sections: tuple[Section, ...] = ()
    images: tuple[ImagePart, ...] = ()
    spaced: bool = False
    droppable: bool = False
    dropped: tuple[int, ...] = ()
    learned: frozenset[int] | None = None

    @classmethod
    def of(
        cls,
        sections: Sequence[Section],
        images: Sequence[ImagePart],
        spaced: bool = False,
        droppable: bool = False,
        dropped: Sequence[int] = (),
    ) -> BuiltPrompt:
        """Build the prompt of these sections, with its text and spans."""
        shown: list[str] = []
        spans: list[Span] = []
        end = 0
        for piece in (piece for section in sections for piece in section.pieces):
            shown.append(_shown(piece, spaced))
            start, end = end, end + len(shown[-1])
            if isinstance(piece, Text):
                spans.append(Span(start, end, "user"))
            elif isinstance(piece, Control):
                spans.append(Span(start, end, "control", 1))
            else:
                spans.append(Span(start, end, "image", 1 if piece.grid is None else piece.grid.tokens))
        text = "".join(shown)
        rest = (tuple(sections), tuple(images), spaced, droppable, tuple(dropped))
        return cls(text, tuple(spans), None, *rest)

    @property
    def marks_answers(self) -> bool:
        """Whether the ids come with a mask of the assistant's text."""
        return self.learned is not None

    def is_learned(self, section: Section) -> bool:
        """Return whether a section is the assistant's with all of its messages in `learned`."""
        return section.role == "assistant" and all(
            place in (self.learned or ()) for place in section.messages
        )

    @property
    def from_messages(self) -> bool:
        """Whether the prompt was built from a conversation, not read from a text."""
        return len(self.sections) > 1

    @property
    def sources(self) -> list[Any]:
        """Sources of the images, without images that have none."""
        return [part.source for part in self.images if part.source is not None]

    @property
    def scanned_text(self) -> str:
        """Always "": the prompt is encoded piece by piece."""
        return ""

    @property
    def pieces(self) -> Iterator[Piece]:
        """All pieces, in order."""
        return (piece for section in self.sections for piece in section.pieces)

    @property
    def order(self) -> list[int]:
        """Index among the images of the messages, for each image of the prompt."""
        return [piece.number for piece in self.pieces if isinstance(piece, Image)]

    def count_images(self, image_token: str) -> int:
        """Return the number of images, for any `image_token`."""
        return len(self.images)

    def count_image_tokens(self, image_token: str) -> int:
        """Return the number of image tokens; an image without a grid has one."""
        grids = (piece.grid for piece in self.pieces if isinstance(piece, Image))
        return sum(1 if grid is None else grid.image_tokens for grid in grids)

    def with_grids(
        self, grids: Iterator[Grid], tokens: tuple[str, str, str] = (IMAGE, BREAK, END)
    ) -> BuiltPrompt:
        """Return the prompt with each image expanded to the tokens of the next grid, by the format's own names."""
        sized = [
            Section(s.role, tuple(_sized(piece, grids) for piece in s.pieces), s.messages)
            for s in self.sections
        ]
        made = BuiltPrompt.of(sized, self.images, self.spaced, self.droppable, self.dropped)
        return replace(made, learned=self.learned)

    def without(self, places: Iterable[int]) -> BuiltPrompt:
        """Return the prompt without the sections at `places` and without their images."""
        gone = set(places)
        kept: list[Section] = []
        images: list[ImagePart] = []
        position = 0
        dropped = list(self.dropped)
        for place, section in enumerate(self.sections):
            number = sum(isinstance(piece, Image) for piece in section.pieces)
            if place in gone:
                dropped.extend(section.messages)
            else:
                kept.append(section)
                images.extend(self.images[position : position + number])
            position += number
        made = BuiltPrompt.of(kept, images, self.spaced, self.droppable, sorted(dropped))
        return replace(made, learned=self.learned)


def _sized(piece: Piece, grids: Iterator[Grid]) -> Piece:
    return Image(piece.number, next(grids)) if isinstance(piece, Image) else piece


def _shown(piece: Piece, spaced: bool) -> str:
    if isinstance(piece, Control):
        return piece.name
    if isinstance(piece, Text):
        return f" {piece.text}" if spaced and piece.joint == "own" and piece.text else piece.text
    return IMAGE if piece.grid is None else "".join(piece.grid.expand(IMAGE, BREAK, END))
