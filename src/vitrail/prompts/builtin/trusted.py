"""Prompts as texts, read into pieces: control tokens are recognised where no user typed them. No messages."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from vitrail.prompts.builtin.built_prompt import BuiltPrompt
from vitrail.prompts.builtin.pieces import BOS, IMAGE, Control, Image, Piece, Section, Text
from vitrail.prompts.control_pattern import control_pattern
from vitrail.prompts.messages import ImagePart
from vitrail.prompts.rendered_prompt import RenderedPrompt


def read_trusted(prompt: RenderedPrompt, controls: Collection[str], image_token: str = IMAGE) -> BuiltPrompt:
    """A prompt of a template or of one author → its pieces; a begin token is added unless it has one.

    `controls`: the names of control tokens; those that a user typed are not recognised. Between control tokens nothing is
    put in front of a text: a prompt for SentencePiece writes its spaces, "[INST] hi[/INST]".
    """
    pieces = list(_pieces(prompt, (*controls, image_token), image_token))
    begin = [] if pieces[:1] == [Control(BOS)] else [Control(BOS)]
    number = sum(isinstance(piece, Image) for piece in pieces)
    return BuiltPrompt.of((Section("begin", (*begin, *pieces)),), [ImagePart(None)] * number)


def _pieces(prompt: RenderedPrompt, controls: tuple[str, ...], image_token: str) -> Iterator[Piece]:
    end = number = 0
    for match in control_pattern(controls).finditer(prompt.readable):
        if match.start() > end:
            yield Text(prompt.text[end : match.start()], "bare" if end else "own")
        if match.group() == image_token:
            yield Image(number)
            number += 1
        else:
            yield Control(match.group())
        end = match.end()
    if end < len(prompt.text):
        yield Text(prompt.text[end:], "bare" if end else "own")
