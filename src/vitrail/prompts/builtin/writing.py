"""write_sections: turns to pieces in mistral-common's formats v1 to v15 (docs/formats.md, "Prompts")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.json_text import read_json_or_text, write_json
from vitrail.prompts.builtin.merge import BETWEEN, Merged, image_first, merge_turns, system_text
from vitrail.prompts.builtin.pieces import EOS, Control, Piece, Section, Text
from vitrail.prompts.builtin.turns import NO_ID, Content, Turn
from vitrail.prompts.builtin.validation import Refused
from vitrail.prompts.messages import ThinkPart


def write_sections(turns: Sequence[Turn], tools: Any, settings: Any, format: Format) -> list[Section]:
    """Write the sections of a checked conversation, without the begin token.

    Args:
        turns: The conversation.
        tools: Definitions; empty for none.
        settings: Model settings; empty for none.
        format: The format.

    Raises:
        Refused: The merged turns break a rule of the format.
    """
    merged = merge_turns(turns, format)
    users = [place for place, turn in enumerate(merged) if turn.role == "user"]
    first, last = (users[0], users[-1]) if users else (-1, -1)
    if format.results == "json list":
        _refuse_many_results(merged[last:], format)
    system = system_text(turns, format) if format.system != "block" else ""
    system_at = first if format.system == "first user" else last
    head = _head(tools, settings)
    head_at = {"first user": first, "last user": last}.get(format.tools)
    sections = []
    for place, turn in enumerate(merged):
        if turn.role == "user":
            pieces = _user(turn, system if place == system_at else "", format)
            pieces = [*head, *pieces] if place == head_at else pieces
        elif turn.role == "assistant":
            pieces = _assistant(turn, format)
            pieces = [] if turn.calls and place < last and not format.old_calls else pieces
        elif turn.role == "tool":
            pieces = [] if place < last and not format.old_calls else _result(turn, format)
        else:
            pieces = [Control("[SYSTEM_PROMPT]"), *_content(turn.content), Control("[/SYSTEM_PROMPT]")]
        sections.append(Section(turn.role, tuple(pieces), turn.messages))
    return sections


def write_arguments(turn: Merged, number: int) -> str:
    """Write the arguments of a call as JSON."""
    return write_json(turn.calls[number].arguments, f"messages[{turn.messages[0]}].tool_calls[{number}]")


def write_call_list(turn: Merged, with_ids: bool) -> str:
    """Write the calls of a turn as one JSON list."""
    calls = [
        {"name": call.name, "arguments": call.arguments}
        | ({"id": call.id} if with_ids and call.id != NO_ID else {})
        for call in turn.calls
    ]
    return write_json(calls, f"messages[{turn.messages[0]}].tool_calls")


def _head(tools: Any, settings: Any) -> list[Piece]:
    """Write the blocks before a user turn: tools and model settings."""
    head: list[Piece] = []
    if tools:
        text = Text(write_json(tools, "tools"))
        head += [Control("[AVAILABLE_TOOLS]"), text, Control("[/AVAILABLE_TOOLS]")]
    if settings:
        text = Text(write_json(settings, "settings"))
        head += [Control("[MODEL_SETTINGS]"), text, Control("[/MODEL_SETTINGS]")]
    return head


def _user(turn: Merged, system: str, format: Format) -> list[Piece]:
    before = system + BETWEEN if system else ""
    content = image_first(turn.content)
    if format.plain_markers:
        return [Text(f"[INST] {before}{content} [/INST]")]
    if isinstance(content, str):
        inner = list(_content(before + content))
    else:
        inner = [*_content(before), *_content(content)]
    return [Control("[INST]"), *inner, Control("[/INST]")]


def _assistant(turn: Merged, format: Format) -> list[Piece]:
    if format.exclusive and turn.content and turn.calls:
        raise Refused(
            f"messages[{turn.messages[0]}]: this assistant's message and its neighbours have both content and "
            f"tool_calls; format {format.name!r} merges them, and takes one of the two"
        )
    if not turn.content and not turn.calls:
        raise Refused(f"messages[{turn.messages[0]}].content: an assistant's message is empty")
    strip = format.strips and isinstance(turn.content, str)
    content = turn.content.rstrip(" ") if strip and isinstance(turn.content, str) else turn.content
    pieces = [*_content(content), *_calls(turn, format)]
    return pieces if turn.prefix else [*pieces, Control(EOS)]


def _calls(turn: Merged, format: Format) -> Iterator[Piece]:
    if format.calls == "list" and turn.calls:
        yield Control("[TOOL_CALLS]")
        yield Text(write_call_list(turn, format.call_ids))
        return
    for number, call in enumerate(turn.calls):
        yield Control("[TOOL_CALLS]")
        yield Text(call.name)
        if format.call_ids and call.id != NO_ID:
            yield Control("[CALL_ID]")
            yield Text(call.id)
        yield Control("[ARGS]")
        yield Text(write_arguments(turn, number))


def _result(turn: Merged, format: Format) -> list[Piece]:
    place = f"messages[{turn.messages[0]}].content"
    inner: list[Piece] = []
    if format.results == "id and content":
        inner = [Text(turn.call_id or ""), Control("[TOOL_CONTENT]"), *_content(turn.content)]
    elif format.results == "content":
        inner = [*_content(turn.content)]
    elif isinstance(turn.content, str):
        value = read_json_or_text(turn.content, place)
        shown: Any = [{"name": turn.name, "content": value}]
        if format.results == "json":
            shown = {"content": value, "call_id": turn.call_id}
        inner = [Text(write_json(shown, place))]
    return [Control("[TOOL_RESULTS]"), *inner, Control("[/TOOL_RESULTS]")]


def _content(content: Content) -> Iterator[Piece]:
    for item in (content,) if isinstance(content, str) else content:
        if isinstance(item, str):
            if item:
                yield Text(item)
        elif isinstance(item, ThinkPart):
            yield Control("[THINK]")
            yield Text(item.thinking)
            if item.closed:
                yield Control("[/THINK]")
        else:
            yield item


def _refuse_many_results(turns: Sequence[Merged], format: Format) -> None:
    """Refuse several results for the calls of a turn, which v2 has no form for (from the last user turn on)."""
    results, called = 0, False
    for turn in turns:
        if turn.role != "tool":
            results, called = 0, turn.role == "assistant" and bool(turn.calls)
            continue
        results += called
        if results > 1:
            raise Refused(
                f"messages[{turn.messages[0]}]: format {format.name!r} takes one tool result for an assistant's turn"
            )
