"""read_trusted: a prompt's text to pieces, with control tokens recognised outside of user text."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from vitrail.prompts.builtin.built_prompt import BuiltPrompt
from vitrail.prompts.builtin.pieces import BOS, IMAGE, Control, Image, Piece, Section, Text
from vitrail.prompts.control_pattern import control_pattern
from vitrail.prompts.messages import ImagePart
from vitrail.prompts.rendered_prompt import RenderedPrompt


def read_trusted(prompt: RenderedPrompt, controls: Collection[str], image_token: str = IMAGE) -> BuiltPrompt:
    """Read the pieces of a prompt by a template or by one author; a missing begin token is added.

    Nothing is put before a text that follows a control token: prompts for SentencePiece contain these spaces,
    "[INST] hi[/INST]".

    Args:
        prompt: The prompt.
        controls: Names of control tokens, recognised outside of user text.
        image_token: Name of the image token.
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
