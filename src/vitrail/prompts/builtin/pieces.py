"""What a prompt is made of: control tokens, texts and images, gathered into sections. No strings, no ids."""

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
    """A control token, by name. `optional`: a tokenizer that has none of this name writes the name as text."""

    name: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is encoded by itself, never scanned for control tokens.

    joint: "own" as the tokenizer encodes any text (SentencePiece puts a space in front); "bare" with nothing put in
    front, neighbours joined first; "infill" as the part after a gap, torn from a word before it.
    """

    text: str
    joint: Joint = "own"


@dataclass(frozen=True, slots=True)
class Image:
    """An image. `number`: its place among those of the messages; grid: its image tokens, once known."""

    number: int
    grid: Grid | None = None


Piece: TypeAlias = Control | Text | Image


@dataclass(frozen=True, slots=True)
class Section:
    """The pieces that one turn becomes. `messages`: the places of its messages in the conversation."""

    role: str
    pieces: tuple[Piece, ...]
    messages: tuple[int, ...] = ()
