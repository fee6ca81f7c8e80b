"""build_chat, fit_rows, encode_built: built-in formats for the calls of tokenizers and processors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitrail.errors import InputError, PromptError, UnsupportedError
from vitrail.prompts.builtin import (
    BuiltPrompt,
    Encoder,
    Format,
    build_prompt,
    encode_marked,
    encode_prompt,
    find_format,
    fit_prompt,
)
from vitrail.prompts.render import Chat
from vitrail.prompts.rendered_prompt import RenderedPrompt

AUTO = "auto"
_CHAT_OPTIONS = (
    "tools",
    "continue_final_message",
    "reasoning_effort",
    "mode",
    "return_assistant_tokens_mask",
)
_NEEDLESS = ("add_generation_prompt",)  # Mistral's prompts always end where the assistant's turn begins


def choose_format(name: str | Format, detect: Callable[[], Format]) -> Format:
    """Return the format of a name; for "auto" that of the tokenizer's file (`detect`)."""
    return detect() if name == AUTO else find_format(name)


def build_chat(conversation: Any, format: Format, encoder: Encoder, options: Mapping[str, Any]) -> Chat:
    """Build the prompts of one conversation or a list of them in a built-in format.

    Args:
        conversation: One conversation or a list of them.
        format: The format.
        encoder: The tokenizer.
        options: `tools`, `continue_final_message`, `reasoning_effort`, `mode`, `return_assistant_tokens_mask` of
            `build_prompt`.

    Raises:
        PromptError: As `build_prompt`, with the index of the conversation.
        InputError: There is an unknown option.
        UnsupportedError: `documents` are given.
    """
    given = {name: value for name, value in options.items() if name not in _NEEDLESS}
    if given.pop("documents", None) is not None:
        raise UnsupportedError("documents: the built-in prompt formats have no place for them")
    if unknown := sorted(set(given) - set(_CHAT_OPTIONS)):
        raise InputError(f"the built-in prompt formats have no options {', '.join(unknown)}")
    rows, batched = _rows(conversation)
    prompts = []
    for index, row in enumerate(rows):
        try:
            prompts.append(build_prompt(row, format, spaced=encoder.spaced, **given))
        except PromptError as error:
            if batched:
                raise PromptError(f"conversation {index}: {error}") from error
            raise
    return Chat(prompts, [list(prompt.images) for prompt in prompts], batched)


def _rows(conversation: Any) -> tuple[list[Any], bool]:
    """Return the conversations in their given spelling, and whether a list of them was given."""
    is_list = isinstance(conversation, (list, tuple)) and len(conversation) > 0
    if is_list and (isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")):
        return list(conversation), True
    return [conversation], False


def fit_rows(
    prompts: Sequence[RenderedPrompt], encoder: Encoder, limit: int
) -> tuple[list[RenderedPrompt], list[int]]:
    """Leave out the oldest turns of prompts that are too long. Errors as `fit_text`.

    Returns:
        The prompts, and the indices of the remaining images, counted through all prompts.

    Raises:
        InputError: A prompt was rendered by a template.
    """
    fitted: list[RenderedPrompt] = []
    kept: list[int] = []
    start = 0
    for prompt in prompts:
        if not isinstance(prompt, BuiltPrompt):
            raise InputError("truncation: mix no prompts from templates with those of built-in formats")
        short = fit_text(prompt, encoder, limit)
        after = short.order
        kept += [start + place for place, number in enumerate(prompt.order) if number in after]
        start += len(prompt.order)
        fitted.append(short)
    return fitted, kept


def fit_text(prompt: BuiltPrompt, encoder: Encoder, limit: int | None) -> BuiltPrompt:
    """Leave out the oldest turns of a prompt from messages, with a warning. Errors as `fit_prompt`."""
    if limit is None or not prompt.from_messages:
        return prompt
    short = fit_prompt(prompt, encoder, limit)
    if short.dropped != prompt.dropped:
        names = ", ".join(map(str, short.dropped))
        warnings.warn(
            f"the prompt is too long for max_length={limit}: messages {names} are left out", stacklevel=4
        )
    return short


def encode_built(
    prompt: BuiltPrompt, encoder: Encoder, limit: int | None, side: str
) -> tuple[list[int], list[int]]:
    """Encode a prompt; one that was read from a text is truncated to `limit` ids at `side`.

    Args:
        prompt: The prompt.
        encoder: The tokenizer.
        limit: Maximum number of ids; None for no limit.
        side: "left" or "right", the end that truncation removes.

    Returns:
        The ids, and the mask of `encode_marked` ([] if the prompt has none).
    """
    if prompt.marks_answers:
        return encode_marked(prompt, encoder)
    ids = encode_prompt(prompt, encoder)
    if limit is None or prompt.from_messages or len(ids) <= limit:
        return ids, []
    return (ids[-limit:] if side == "left" else ids[:limit]), []
