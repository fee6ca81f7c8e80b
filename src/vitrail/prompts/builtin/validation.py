"""check_turns: refuse wrong order of roles, calls without results, wrong ids and misplaced parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, cast, get_args

from vitrail.errors import InputError, PromptError
from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.pieces import Image
from vitrail.prompts.builtin.tools import check_name
from vitrail.prompts.builtin.turns import NO_ID, Turn
from vitrail.prompts.messages import ThinkPart

Mode: TypeAlias = Literal["test", "serving", "finetuning", "agnostic"]

_NINE = re.compile(r"^[a-zA-Z0-9]{9}$")  # `$` allows a final newline, as in mistral-common
_FOLLOWERS = {
    "system": ("user", "assistant", "system"),
    "user": ("assistant", "system", "user"),
    "assistant": ("assistant", "user", "tool"),
    "tool": ("assistant", "tool", "user"),
}


class Refused(PromptError):
    """Raised for a conversation that this format refuses; another one may accept it."""


def check_turns(turns: Sequence[Turn], format: Format, mode: Mode) -> None:
    """Raise Refused, with the message and the field, for a conversation that mistral-common refuses in `mode`."""
    if format.ordered:
        _check_order(turns)
        _check_end(turns, mode)
    (_check_results if format.pairing == "id" else _count_results)(turns, format, mode)
    for turn in turns:
        _check_parts(turn, format)
        if turn.role == "assistant":
            _check_assistant(turn, format, mode, turn is turns[-1])
        elif turn.role == "tool":
            _check_result(turn, format)


def check_mode(mode: str) -> Mode:
    """Return `mode`; InputError for an unknown mode."""
    for known in get_args(Mode):
        if mode == known:
            return cast(Mode, known)
    raise InputError(f"mode is one of {', '.join(get_args(Mode))}; got {mode!r}")


def _check_order(turns: Sequence[Turn]) -> None:
    if len(turns) == 1 and turns[0].role not in ("user", "system"):
        raise Refused(
            f"messages[0].role: a single message is a user's or a system message, not {turns[0].role!r}"
        )
    for before, turn in pairwise(turns):
        if turn.role not in _FOLLOWERS[before.role]:
            raise Refused(
                f"{turn.place}.role: {turn.role!r} after {before.role!r}; "
                f"expected one of {', '.join(_FOLLOWERS[before.role])}"
            )


def _check_end(turns: Sequence[Turn], mode: Mode) -> None:
    last = turns[-1]
    if mode == "finetuning":
        if last.role != "assistant" or last.prefix:
            raise Refused(
                f"{last.place}.role: in mode 'finetuning' the last message is an assistant's, and complete"
            )
    elif mode != "agnostic" and len(turns) > 1 and last.role == "assistant" and not last.prefix:
        raise Refused(
            f"{last.place}.role: the last message is an assistant's; a user or a tool speaks last, or give "
            "continue_final_message=True"
        )


def _count_results(turns: Sequence[Turn], format: Format, mode: Mode) -> None:
    """Compare the numbers of calls and results, as formats up to v7 do, without the conversation's first message."""
    open_calls = 0
    for turn in turns[1:]:
        if turn.role == "tool":
            open_calls -= 1
        elif turn.role == "assistant":
            if open_calls:
                raise _unbalanced(turn, open_calls)
            open_calls = len(turn.calls)
    if (mode == "serving" and open_calls) or (mode == "finetuning" and open_calls < 0):
        raise _unbalanced(turns[-1], open_calls)


def _check_results(turns: Sequence[Turn], format: Format, mode: Mode) -> None:
    """Match results and calls by id, as formats from v11 on do: one result for each call, before the next calls."""
    called: set[str] = set()
    answered: set[str] = set()
    for turn in turns[1:] if format.ordered else turns:
        if turn.role == "tool":
            if turn.call_id in answered:
                raise Refused(f"{turn.place}.tool_call_id: a second result for the call {turn.call_id!r}")
            if turn.call_id is None or turn.call_id not in called:
                raise Refused(f"{turn.place}.tool_call_id: a result without a call of id {turn.call_id!r}")
            answered.add(turn.call_id)
        elif turn.role == "assistant":
            if called != answered:
                raise _unbalanced(turn, len(called) - len(answered))
            called, answered = {call.id for call in turn.calls}, set()
            for number, call in enumerate(turn.calls):
                if call.id in {other.id for other in turn.calls[:number]}:
                    raise Refused(f"{turn.place}.tool_calls[{number}].id: {call.id!r} is the id of two calls")
    if mode == "serving" and called != answered:
        raise _unbalanced(turns[-1], len(called) - len(answered))


def _unbalanced(turn: Turn, missing: int) -> Refused:
    what = f"{missing} results are missing" if missing > 0 else f"there are {-missing} results without a call"
    return Refused(f"{turn.place}: {what} before this message")


def _check_parts(turn: Turn, format: Format) -> None:
    if not isinstance(turn.content, tuple):
        return
    for number, item in enumerate(turn.content):
        place = f"{turn.place}.content[{number}]"
        if isinstance(item, Image) and turn.role not in format.images:
            raise Refused(
                f"{place}: format {format.name!r} takes no image in a message of role {turn.role!r}"
            )
        if isinstance(item, ThinkPart) and turn.role not in format.thinks:
            raise Refused(
                f"{place}: format {format.name!r} takes no thinking in a message of role {turn.role!r}"
            )


def _check_assistant(turn: Turn, format: Format, mode: Mode, is_last: bool) -> None:
    if turn.prefix and not is_last:
        raise Refused(f"{turn.place}.prefix: only the last message can be continued")
    if turn.calls and format.calls == "none":
        raise Refused(f"{turn.place}.tool_calls: format {format.name!r} has no tool calls")
    if format.exclusive and bool(turn.content) == bool(turn.calls):
        what = "both" if turn.calls else "neither"
        raise Refused(
            f"{turn.place}: in format {format.name!r} an assistant's message has either content or tool_calls; "
            f"this one has {what}"
        )
    for number, call in enumerate(turn.calls):
        place = f"{turn.place}.tool_calls[{number}]"
        _refused(check_name, call.name, f"{place}.function.name")
        open_end = mode in ("finetuning", "agnostic") and is_last
        unnamed = call.id == NO_ID and open_end and format.ids == "nine"
        if not unnamed:
            _check_id(call.id, f"{place}.id", format)


def _check_result(turn: Turn, format: Format) -> None:
    if format.results == "none":
        raise Refused(f"{turn.place}.role: format {format.name!r} has no tool results")
    if turn.name is not None:
        _refused(check_name, turn.name, f"{turn.place}.name")
    _check_id(turn.call_id, f"{turn.place}.tool_call_id", format)


def _check_id(identity: str | None, place: str, format: Format) -> None:
    if format.ids == "nine" and (identity is None or not _NINE.match(identity)):
        raise Refused(
            f"{place}: in format {format.name!r} an id is nine of the characters a-z, A-Z, 0-9; got {identity!r}"
        )
    if format.ids == "any" and (not identity or identity == NO_ID):
        raise Refused(f"{place}: an id is a text, neither empty nor 'null'; got {identity!r}")


def _refused(check: Callable[[str, str], None], value: str, place: str) -> None:
    try:
        check(value, place)
    except PromptError as error:
        raise Refused(str(error)) from error
