"""BuiltPrompt: a prompt made from messages, as a string that remembers its pieces. Makes no ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from vitrail.prompts.builtin.pieces import BREAK, END, IMAGE, Control, Picture, Piece, Section, Text

if TYPE_CHECKING:
    from vitrail.images.grid import Grid
    from vitrail.prompts.messages import ImagePart


class BuiltPrompt(str):
    """A prompt: prints and compares as the string, and is encoded from its pieces, so that no text becomes a control.

    sections: its turns, the first one holding the begin token. pictures: where each picture comes from, in the order
    in which they stand in the prompt. spaced: texts are shown with the space that the tokenizer puts in front of them.
    droppable: whether the format allows the oldest turns to be left out; dropped: the messages that were.
    Any operation on it (concatenation, slicing, …) gives an ordinary `str`, which has forgotten the pieces.
    """

    sections: tuple[Section, ...]
    pictures: tuple[ImagePart, ...]
    spaced: bool
    droppable: bool
    dropped: tuple[int, ...]

    def __new__(
        cls,
        sections: Sequence[Section],
        pictures: Sequence[ImagePart],
        spaced: bool = False,
        droppable: bool = False,
        dropped: Sequence[int] = (),
    ) -> BuiltPrompt:
        self = super().__new__(cls, "".join(_shown(p, spaced) for s in sections for p in s.pieces))
        self.sections, self.pictures = tuple(sections), tuple(pictures)
        self.spaced, self.droppable, self.dropped = spaced, droppable, tuple(dropped)
        return self

    def __getnewargs__(self) -> tuple[object, ...]:  # type: ignore[override]
        return self.sections, self.pictures, self.spaced, self.droppable, self.dropped

    @property
    def from_messages(self) -> bool:
        """Whether it was made from a conversation, and not read from a text."""
        return len(self.sections) > 1

    @property
    def pieces(self) -> Iterator[Piece]:
        """All pieces, in order."""
        return (piece for section in self.sections for piece in section.pieces)

    @property
    def order(self) -> list[int]:
        """Which picture of the messages, counted from 0, each picture of the prompt is."""
        return [piece.number for piece in self.pieces if isinstance(piece, Picture)]

    def with_grids(self, grids: Iterator[Grid]) -> BuiltPrompt:
        """The prompt with the next grid of `grids` written out for each of its pictures."""
        sized = [
            Section(s.role, tuple(_sized(piece, grids) for piece in s.pieces), s.messages)
            for s in self.sections
        ]
        return BuiltPrompt(sized, self.pictures, self.spaced, self.droppable, self.dropped)

    def without(self, places: Iterable[int]) -> BuiltPrompt:
        """The prompt without the sections at `places`, and without their pictures."""
        gone = set(places)
        kept: list[Section] = []
        pictures: list[ImagePart] = []
        position = 0
        dropped = list(self.dropped)
        for place, section in enumerate(self.sections):
            number = sum(isinstance(piece, Picture) for piece in section.pieces)
            if place in gone:
                dropped.extend(section.messages)
            else:
                kept.append(section)
                pictures.extend(self.pictures[position : position + number])
            position += number
        return BuiltPrompt(kept, pictures, self.spaced, self.droppable, sorted(dropped))


def expansion(rows: int, cols: int) -> Iterator[str]:
    """The names of the tokens that stand for a picture: rows of image tokens, each with its end (FORMATS §5)."""
    for row in range(rows):
        yield from (IMAGE,) * cols
        yield END if row == rows - 1 else BREAK


def _sized(piece: Piece, grids: Iterator[Grid]) -> Piece:
    if not isinstance(piece, Picture):
        return piece
    grid = next(grids)
    return Picture(piece.number, grid.rows, grid.cols)


def _shown(piece: Piece, spaced: bool) -> str:
    if isinstance(piece, Control):
        return piece.name
    if isinstance(piece, Text):
        return f" {piece.text}" if spaced and piece.joint == "own" and piece.text else piece.text
    return IMAGE if piece.rows is None or piece.cols is None else "".join(expansion(piece.rows, piece.cols))
