"""write_card: the format of the Pixtral Large model card, `format="card"`, as defined in docs/prompts.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.json_text import write_json
from vitrail.prompts.builtin.merge import Merged, merge_contents, sort_results
from vitrail.prompts.builtin.pieces import EOS, Control, Image, Piece, Section, Text
from vitrail.prompts.builtin.turns import Content, Turn
from vitrail.prompts.builtin.validation import Refused
from vitrail.prompts.builtin.writing import write_call_list


def write_card(turns: Sequence[Turn], tools: Any, format: Format) -> list[Section]:
    """Write the sections of a checked conversation, without the begin token.

    Raises:
        Refused: Tools come without a user turn before the first call, or an assistant's message is empty.
    """
    ordered = _in_order_of_calls(turns)
    tools_at = _turn_with_tools(ordered) if tools else None
    sections = []
    is_open = False  # an assistant's turn (with its results and the answer to them) has no end token yet
    for place, turn in enumerate(ordered):
        after = ordered[place + 1] if place + 1 < len(ordered) else None
        pieces = list(_turn(turn, tools if turn is tools_at else None, format))
        is_open = turn.role == "assistant" or (is_open and turn.role == "tool")
        if is_open and _closes(turn, after):
            pieces.append(Control(EOS))
        sections.append(Section(turn.role, tuple(pieces), (turn.index,)))
    return sections


def _closes(turn: Turn, after: Turn | None) -> bool:
    if after is None:
        return turn.role == "assistant" and not turn.prefix
    return after.role in ("system", "user") or (after.role == "assistant" and turn.role == "assistant")


def _in_order_of_calls(turns: Sequence[Turn]) -> list[Turn]:
    ordered: list[Turn] = []
    called: list[str] = []
    for role, run in groupby(turns, key=lambda turn: turn.role):
        group = list(run)
        if role == "tool":
            group, called = sort_results(group, called), []
        called.extend(call.id for turn in group for call in turn.calls)
        ordered.extend(group)
    return ordered


def _turn_with_tools(turns: Sequence[Turn]) -> Turn:
    """Return the last user turn before the first call: a later call does not change the prompt before it."""
    first_call = next((place for place, turn in enumerate(turns) if turn.calls), len(turns))
    users = [turn for turn in turns[:first_call] if turn.role == "user"]
    if not users:
        raise Refused(
            "tools: format 'card' shows tools in a user's turn, and none comes before the first call"
        )
    return users[-1]


def _turn(turn: Turn, tools: Any, format: Format) -> Iterator[Piece]:
    content = merge_contents([turn.content], format.joint)
    if turn.role == "assistant":
        yield from _assistant(turn, content)
        return
    begin, end = {
        "system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        "user": ("[INST]", "[/INST]"),
        "tool": ("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    }[turn.role]
    yield Control(begin)
    yield Text(" ", "bare")
    yield from _items(content)
    if tools:
        yield Control("[AVAILABLE_TOOLS]")
        yield Text(" " + write_json(tools, "tools"), "bare")
        yield Control("[/AVAILABLE_TOOLS]")
    yield Control(end)


def _assistant(turn: Turn, content: Content) -> Iterator[Piece]:
    if not content and not turn.calls:
        raise Refused(f"{turn.place}.content: an assistant's message is empty")
    items = [content] if isinstance(content, str) else list(content)
    if isinstance(items[-1], str):
        items[-1] = items[-1].rstrip(" ")
    if isinstance(items[0], str) and items[0]:
        yield Text(" ", "bare")
    yield from _items(tuple(items))
    if turn.calls:
        listed = write_call_list(Merged("assistant", "", (turn.index,), turn.calls), with_ids=True)
        yield Control("[TOOL_CALLS]")
        yield Text(" " + listed, "bare")
        yield Control("[/TOOL_CALLS]", optional=True)


def _items(content: Content) -> Iterator[Piece]:
    for item in (content,) if isinstance(content, str) else content:
        if isinstance(item, Image):
            yield item
        elif isinstance(item, str) and item:
            yield Text(item, "bare")
