"""Strings that a person wrote as a whole prompt, read into pieces: here control tokens are recognised. No messages."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from vitrail.prompts.builtin.built_prompt import BuiltPrompt
from vitrail.prompts.builtin.pieces import BOS, IMAGE, Control, Picture, Piece, Section, Text
from vitrail.prompts.control_token_mask import Prompt, control_pattern
from vitrail.prompts.messages import ImagePart


def read_trusted(text: str, controls: Collection[str], image_token: str = IMAGE) -> BuiltPrompt:
    """A prompt as text → its pieces; a begin token is added unless it has one.

    `controls`: the names of control tokens. In a `Prompt` only those are recognised that its template wrote. Between
    control tokens nothing is put in front of a text: a prompt for SentencePiece writes its spaces, "[INST] hi[/INST]".
    """
    source = text.veiled if isinstance(text, Prompt) else text
    lift = text.veil.lift if isinstance(text, Prompt) else str
    pieces = list(_pieces(source, (*controls, image_token), image_token))
    lifted = [Text(lift(p.text), p.joint) if isinstance(p, Text) else p for p in pieces]
    begin = [] if lifted[:1] == [Control(BOS)] else [Control(BOS)]
    number = sum(isinstance(piece, Picture) for piece in lifted)
    return BuiltPrompt((Section("begin", (*begin, *lifted)),), [ImagePart(None)] * number)


def _pieces(source: str, controls: tuple[str, ...], image_token: str) -> Iterator[Piece]:
    end = number = 0
    for match in control_pattern(controls).finditer(source):
        if match.start() > end:
            yield Text(source[end : match.start()], "bare" if end else "own")
        if match.group() == image_token:
            yield Picture(number)
            number += 1
        else:
            yield Control(match.group())
        end = match.end()
    if end < len(source):
        yield Text(source[end:], "bare" if end else "own")
