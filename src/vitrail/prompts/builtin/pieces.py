"""Piece, Section: the control tokens, texts and images of a prompt, by turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from vitrail.images.grid import Grid

BOS, EOS = "<s>", "</s>"
IMAGE, BREAK, END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"

Joint: TypeAlias = Literal["own", "bare", "infill"]


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by name. `optional`: encoded as text by tokenizers without this control token."""

    name: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is encoded by itself, never scanned for control tokens.

    Attributes:
        joint: "own": as the tokenizer encodes any text (SentencePiece puts a space before it); "bare": with nothing
            put before it, adjacent ones joined first; "infill": as the text after a gap inside a word.
    """

    text: str
    joint: Joint = "own"


@dataclass(frozen=True, slots=True)
class Image:
    """An image. `number`: its index among the images of the messages; `grid`: its grid of patches, once known."""

    number: int
    grid: Grid | None = None


Piece: TypeAlias = Control | Text | Image


@dataclass(frozen=True, slots=True)
class Section:
    """The pieces of one turn. `messages`: places of its messages in the conversation."""

    role: str
    pieces: tuple[Piece, ...]
    messages: tuple[int, ...] = ()
