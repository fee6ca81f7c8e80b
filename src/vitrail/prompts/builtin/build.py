"""build_prompt, fim_prompt: prompts in a built-in format; encode.py converts them to ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vitrail.arguments import checked
from vitrail.errors import PromptError
from vitrail.prompts.builtin.built_prompt import BuiltPrompt
from vitrail.prompts.builtin.card import write_card
from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.pieces import BOS, Control, Section, Text
from vitrail.prompts.builtin.tools import read_tools
from vitrail.prompts.builtin.turns import Turn, read_turns
from vitrail.prompts.builtin.validation import Mode, Refused, check_mode, check_turns
from vitrail.prompts.builtin.versions import FORMATS, find_format
from vitrail.prompts.builtin.writing import write_sections


@checked
def build_prompt(
    conversation: Any,
    format: str | Format,
    *,
    tools: Any = None,
    continue_final_message: bool = False,
    reasoning_effort: str | None = None,
    mode: str = "test",
    spaced: bool = False,
    return_assistant_tokens_mask: bool = False,
) -> BuiltPrompt:
    """Build the prompt of one conversation.

    Args:
        conversation: Messages in any spelling of `messages.normalize`.
        format: A format or its name (versions.py).
        tools: Definitions in OpenAI's form.
        continue_final_message: Leave the last message, an assistant's, open.
        reasoning_effort: Value of the model setting; only for formats with settings.
        mode: Purpose of the conversation, as mistral-common's validation mode: "serving", "finetuning", "test", ….
        spaced: Show in `text` the spaces that SentencePiece puts before texts.
        return_assistant_tokens_mask: Mark the assistant's messages, except those of weight 0, in `encode_marked`.

    Raises:
        PromptError: The conversation is malformed or refused by the format; with the message, the field, and the
            formats that accept it.
    """
    form = find_format(format)
    if hasattr(conversation, "messages") and tools is None:
        tools = getattr(conversation, "tools", None)  # a mistral-common request has its own tools
    turns, images = read_turns(conversation, continue_final_message)
    shown, purpose = read_tools(tools), check_mode(mode)
    try:
        sections = _sections(turns, shown, reasoning_effort, form, purpose)
    except Refused as error:
        names = [name for name in FORMATS if _accepts(name, turns, shown, reasoning_effort, purpose)]
        hint = f"; accepted by format {' or '.join(repr(name) for name in names)}" if names else ""
        raise PromptError(f"{error}{hint}") from error
    _tell_of_lost_tools(shown, sections, form)
    prompt = BuiltPrompt.of((Section("begin", (Control(BOS),)), *sections), (), spaced, form.drops)
    learned = frozenset(turn.index for turn in turns if turn.role == "assistant" and turn.weight != 0)
    marked = learned if return_assistant_tokens_mask else None
    return replace(prompt, images=tuple(images[number] for number in prompt.order), learned=marked)


def fim_prompt(
    prompt: str, suffix: str | None = None, *, format: str | Format, spaced: bool = False
) -> BuiltPrompt:
    """Build a fill-in-the-middle prompt.

    Args:
        prompt: Text before the gap.
        suffix: Text after the gap.
        format: A format or its name.
        spaced: As in `build_prompt`.

    Raises:
        PromptError: The format has no such prompts, or a text is no `str`.
    """
    form = find_format(format)
    if not form.infills:
        raise PromptError(f"format {form.name!r} has no prompts that fill a gap")
    for name, value in (("prompt", prompt), ("suffix", suffix)):
        if not isinstance(value, str) and not (name == "suffix" and value is None):
            raise PromptError(f"{name}: expected a text, got {type(value).__name__}")
    after = (Text(suffix, "infill"),) if suffix else ()
    pieces = (Control(BOS), Control("[SUFFIX]"), *after, Control("[PREFIX]"), Text(prompt))
    return BuiltPrompt.of((Section("begin", pieces),), (), spaced)


def _sections(
    turns: Sequence[Turn], tools: Any, effort: str | None, format: Format, mode: Mode
) -> list[Section]:
    check_turns(turns, format, mode)
    settings = _settings(effort, format)
    if not format.ordered:
        return write_card(turns, tools, format)
    return write_sections(turns, tools, settings, format)


def _settings(effort: str | None, format: Format) -> dict[str, str]:
    if not format.settings:
        if effort is not None:
            raise Refused(f"reasoning_effort: format {format.name!r} has no such setting; got {effort!r}")
        return {}
    if format.efforts is None:
        raise Refused(
            f"format {format.name!r} writes model settings, and the tokenizer's file has no model_settings_builder"
        )
    chosen = format.efforts.default if effort is None else effort
    if chosen not in format.efforts.values:
        raise Refused(f"reasoning_effort: expected one of {', '.join(format.efforts.values)}, got {effort!r}")
    return {"reasoning_effort": chosen}


def _accepts(name: str, turns: Sequence[Turn], tools: Any, effort: str | None, mode: Mode) -> bool:
    try:
        _sections(turns, tools, effort, FORMATS[name], mode)
    except PromptError:
        return False
    return True


def _tell_of_lost_tools(tools: Any, sections: Sequence[Section], format: Format) -> None:
    """Warn about tools that the format leaves out: it has none, or there is no user turn."""
    if tools and (format.tools == "nowhere" or not any(section.role == "user" for section in sections)):
        why = (
            "has no tools" if format.tools == "nowhere" else "shows tools in a user's turn, and there is none"
        )
        warnings.warn(f"tools are left out: format {format.name!r} {why}", stacklevel=4)
