"""Built-in formats behind the tokenizers' and the processor's calls: chats, and prompts that are too long."""

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
_NEEDLESS = ("add_generation_prompt",)  # Mistral's prompts end where the model begins


def choose_format(name: str | Format, detect: Callable[[], Format]) -> Format:
    """The format of a name; the one of the tokenizer's file for "auto"."""
    return detect() if name == AUTO else find_format(name)


def build_chat(conversation: Any, format: Format, encoder: Encoder, options: Mapping[str, Any]) -> Chat:
    """One conversation or a list of them as prompts in a built-in format.

    options: tools, continue_final_message, reasoning_effort, mode, return_assistant_tokens_mask.
    Raises PromptError with the place of a fault, InputError for other options.
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
    """One conversation or a list of them → the list, and whether it was one; the messages stay as they were given."""
    is_list = isinstance(conversation, (list, tuple)) and len(conversation) > 0
    if is_list and (isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")):
        return list(conversation), True
    return [conversation], False


def fit_rows(
    prompts: Sequence[RenderedPrompt], encoder: Encoder, limit: int
) -> tuple[list[RenderedPrompt], list[int]]:
    """The prompts, those made from messages without their oldest turns if too long, and the images that stay.

    Images are counted through all prompts. Errors: `fit_prompt`.
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
    """The prompt without its oldest turns if it is too long; a warning tells which. Errors: `fit_prompt`."""
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
    """The ids of a prompt; one that was no conversation is cut to `limit` at `side`, as any text.

    Second, 1 for the ids of the assistant's words and 0 for others, or [] where that is not asked for.
    """
    if prompt.marks_answers:
        return encode_marked(prompt, encoder)
    ids = encode_prompt(prompt, encoder)
    if limit is None or prompt.from_messages or len(ids) <= limit:
        return ids, []
    return (ids[-limit:] if side == "left" else ids[:limit]), []
