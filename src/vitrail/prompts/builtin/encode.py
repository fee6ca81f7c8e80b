"""encode_prompt: pieces to ids with any Encoder: tokenizer/mistral_encoder.py or tokenizer/json_encoder.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from vitrail.errors import PromptError
from vitrail.prompts.builtin.built_prompt import BuiltPrompt
from vitrail.prompts.builtin.pieces import BREAK, END, IMAGE, Control, Image, Piece, Text

CARRIER = "☺"  # a character inside no word: no space is put before a text that follows it


class Encoder(Protocol):
    """Tokenizer interface of the built-in formats."""

    spaced: bool
    """Whether the tokenizer puts a space in front of every text, as SentencePiece does."""

    def find(self, name: str) -> int | None:
        """Return the id of a control token; None for an unknown name."""

    def encode(self, text: str) -> list[int]:
        """Encode a text by itself, without control tokens. Raises PromptError for text that cannot be encoded."""

    def encode_bare(self, text: str) -> list[int]:
        """Encode as `encode`, with nothing put before the text."""

    def encode_infill(self, text: str) -> list[int]:
        """Encode `text` as if another character preceded it (docs/formats.md, "Prompts": filling a gap)."""


def encode_prompt(prompt: BuiltPrompt, encoder: Encoder) -> list[int]:
    """Encode a prompt; an image without a grid is one image token.

    Raises:
        PromptError: The tokenizer lacks a control token, or cannot encode a text.
    """
    return encode_pieces(prompt.pieces, encoder)


def encode_marked(prompt: BuiltPrompt, encoder: Encoder) -> tuple[list[int], list[int]]:
    """Encode a prompt with a mask of the assistant's messages in `learned`.

    Returns:
        The ids, and for each 1 (learned) or 0.

    Raises:
        PromptError: The ids of a message depend on its neighbours, or as in `encode_prompt`.
    """
    ids: list[int] = []
    marks: list[int] = []
    for section in prompt.sections:
        part = encode_pieces(section.pieces, encoder)
        ids += part
        marks += [int(prompt.is_learned(section))] * len(part)
    if ids != encode_prompt(prompt, encoder):
        raise PromptError("the prompt's format joins texts of neighbouring turns; choose another format")
    return ids, marks


def encode_pieces(pieces: Iterable[Piece], encoder: Encoder) -> list[int]:
    """Encode consecutive pieces: those of a prompt or of one section."""
    return [index for piece in joined(pieces, encoder) for index in encode_piece(piece, encoder)]


def fit_prompt(prompt: BuiltPrompt, encoder: Encoder, limit: int) -> BuiltPrompt:
    """Leave out the oldest turns of a prompt that is too long.

    mistral-common's rule: system messages and the last user message stay; a user message is left out together with
    everything up to the next one.

    Args:
        prompt: The prompt.
        encoder: Its tokenizer.
        limit: Maximum number of ids after the begin token.

    Raises:
        PromptError: The rest is still too long, or the format has no such rule.
    """
    turns = prompt.sections[1:]
    lengths = [len(encode_pieces(section.pieces, encoder)) for section in turns]
    excess = sum(lengths) - limit
    if excess <= 0:
        return prompt
    if not prompt.droppable:
        raise PromptError(
            f"the prompt has {sum(lengths)} ids after the begin token, more than max_length={limit}, and its format "
            "has no rule for leaving messages out; shorten the conversation"
        )
    gone, excess = _oldest([section.role for section in turns], lengths, excess)
    if excess > 0:
        raise PromptError(
            f"max_length={limit} is too short by {excess} ids for the system messages and the last user message, "
            "which are never left out"
        )
    return prompt.without(place + 1 for place in gone)


def joined(pieces: Iterable[Piece], encoder: Encoder) -> Iterator[Piece]:
    """Yield the pieces with consecutive bare texts joined, and missing optional control tokens as text."""
    text: list[str] = []
    for piece in pieces:
        if isinstance(piece, Control) and piece.optional and encoder.find(piece.name) is None:
            piece = Text(piece.name, "bare")
        if isinstance(piece, Text) and piece.joint == "bare":
            text.append(piece.text)
            continue
        if text:
            yield Text("".join(text), "bare")
            text = []
        yield piece
    if text:
        yield Text("".join(text), "bare")


def encode_piece(piece: Piece, encoder: Encoder) -> list[int]:
    """Encode one piece."""
    if isinstance(piece, Control):
        return [_control(piece.name, encoder)]
    if isinstance(piece, Image):
        return _image(piece, encoder)
    if not piece.text:
        return []
    if piece.joint == "infill":
        return encoder.encode_infill(piece.text)
    return encoder.encode_bare(piece.text) if piece.joint == "bare" else encoder.encode(piece.text)


def _image(piece: Image, encoder: Encoder) -> list[int]:
    image = _control(IMAGE, encoder)
    if piece.grid is None:
        return [image]
    row_end = _control(BREAK, encoder) if piece.grid.rows > 1 else image
    return piece.grid.expand(image, row_end, _control(END, encoder))


def _control(name: str, encoder: Encoder) -> int:
    index = encoder.find(name)
    if index is None:
        raise PromptError(
            f"the tokenizer has no control token {name}, which this prompt needs; another format may not"
        )
    return index


def _oldest(roles: Sequence[str], lengths: Sequence[int], excess: int) -> tuple[list[int], int]:
    """Return the places of the turns to leave out, and the remaining excess."""
    last_user = max((place for place, role in enumerate(roles) if role == "user"), default=-1)
    gone: list[int] = []
    place = 0
    while excess > 0 and place < len(roles):
        stop = place + 1
        if roles[place] == "user":  # the last user message stays, but not the turns after it
            while stop < len(roles) and roles[stop] != "user":
                stop += 1
        for at in range(place, stop):
            if roles[at] != "system" and at != last_user:
                gone.append(at)
                excess -= lengths[at]
        place = stop
    return gone, excess
