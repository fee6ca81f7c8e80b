"""What follows [TOOL_CALLS] → calls: the list of v2 to v7 and the card, the names and [ARGS] of v11 and later. No ids."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable

from vitrail.responses.events import ArgumentsDelta, CallBegin, CallEnd, Fault, Piece, TextDelta, is_json
from vitrail.responses.tool_call_json import SPACES, CallList

CALL_ID, ARGS, END_CALLS = "[CALL_ID]", "[ARGS]", "[/TOOL_CALLS]"
_NAME = frozenset(string.ascii_letters + string.digits + "_-")
_NAME_LENGTH = 64
_ID = string.ascii_letters + string.digits


def new_call_id() -> str:
    """An id for a call: nine letters and digits, as v3 to v11 demand them."""
    return "".join(secrets.choice(_ID) for _ in range(9))


class CallReader:
    """Turns the text after a [TOOL_CALLS], and the control tokens in it, into pieces given to `emit`.

    fresh: every call gets an id of `new_id` at once, whatever the model writes.
    """

    def __init__(self, emit: Callable[[Piece], None], new_id: Callable[[], str], *, fresh: bool) -> None:
        self._emit = emit
        self._new_id = new_id
        self._fresh = fresh
        self._ids: dict[int, str] = {}  # of the calls that have one, by index
        self._used: set[str] = set()
        self._count = 0
        self._take: Callable[[str], None] = self._plain
        self._list = CallList(self)
        self._parts: list[str] = []  # of the name or the id
        self._named = False  # whether there is more than spaces in a name
        self._held = ""  # what may be the end mark
        self._spaces: list[str] = []  # between a list and its end mark
        self._name = ""
        self._arguments: list[str] = []

    def enter(self) -> None:
        """A [TOOL_CALLS] was read."""
        self._take, self._held, self._parts, self._named = self._head, "", [], False

    def take(self, text: str) -> None:
        """Text was read."""
        if text:
            self._take(text)

    def control(self, token: str) -> bool:
        """[CALL_ID], [ARGS] or [/TOOL_CALLS] was read: whether it has a meaning here."""
        if token == END_CALLS:
            if self._take == self._plain:
                return False
            self.leave(cut=False)
            return True
        named = self._take == self._in_name and self._named
        if token == CALL_ID and named:
            self._name, self._parts, self._take = self._written(), [], self._in_id
        elif token == ARGS and named:
            self._begin_arguments(self._written(), None)
        elif token == ARGS and self._take == self._in_id:
            self._begin_arguments(self._name, self._written() or None)
        else:
            return False
        return True

    def leave(self, *, cut: bool) -> None:
        """The calls end here: with a control token, or (`cut`) because nothing more comes."""
        if self._take == self._head:
            self._emit(Fault("[TOOL_CALLS] was followed by no call"))
        elif self._take == self._in_name:
            self._leave_name(cut)
        elif self._take == self._in_id:
            self._begin_arguments(self._name, None if cut else self._written() or None)
            self._leave_arguments(cut)
        elif self._take == self._in_arguments:
            self._leave_arguments(cut)
        elif self._take == self._in_list:
            self._list.finish()
        elif self._held:
            self._emit(TextDelta("".join(self._spaces) + self._held))
        self._take, self._held, self._parts = self._plain, "", []

    def begin(self, name: str, id_: str | None) -> None:
        """A call's function is known."""
        self._arguments = []
        told = self._unused(self._new_id() if self._fresh else id_)
        if told is not None:
            self._keep_id(told)
        self._emit(CallBegin(self._count, name, told))

    def arguments(self, text: str) -> None:
        """More of its arguments."""
        self._arguments.append(text)
        self._emit(ArgumentsDelta(self._count, text))

    def end(self, id_: str | None, *, complete: bool) -> None:
        """The call is over; `complete`: its arguments ended where the format ends them."""
        told = self._count in self._ids
        if not told:
            self._keep_id(self._unused(id_) or self._new_id())
        valid = complete and is_json("".join(self._arguments))
        if not valid:
            self._emit(Fault(f"the arguments of call {self._count} are not JSON"))
        self._emit(CallEnd(self._count, self._ids[self._count], valid, new_id=not told))
        self._count += 1

    def stray(self, text: str) -> None:
        """Characters that are no call."""
        self._emit(TextDelta(text))

    def fault(self, message: str) -> None:
        """Something is not as the format has it."""
        self._emit(Fault(message))

    def _unused(self, id_: str | None) -> str | None:
        """`id_`, or None where another call of this answer has it: results could not be told apart."""
        if id_ is None or id_ not in self._used:
            return id_
        self._emit(Fault(f"call {self._count} repeats the id of another; it has a new one"))
        return self._new_id() if self._fresh else None

    def _written(self) -> str:
        return "".join(self._parts).strip()

    def _keep_id(self, id_: str) -> None:
        self._ids[self._count] = id_
        self._used.add(id_)

    def _plain(self, text: str) -> None:
        self._emit(TextDelta(text))

    def _head(self, text: str) -> None:
        """Spaces, and then the character that says which form the calls have."""
        begun = text.lstrip(SPACES)
        if not begun:
            return
        if begun[0] in "[{":
            self._list, self._take = CallList(self), self._in_list
        else:
            self._take = self._in_name
        self._take(begun)

    def _in_name(self, text: str) -> None:
        """A function's name. Some models write the arguments behind it without an [ARGS]."""
        before, brace, after = text.partition("{")
        self._parts.append(before)
        self._named = self._named or bool(before.strip())
        if brace and _is_name(name := self._written()):
            self._begin_arguments(name, None)
            self._in_arguments(brace + after)
        elif brace:
            self._no_call("what follows [TOOL_CALLS] names no function; it is in the text")
            self._plain(brace + after)

    def _in_id(self, text: str) -> None:
        self._parts.append(text)

    def _in_arguments(self, text: str) -> None:
        self.arguments(text)

    def _in_list(self, text: str) -> None:
        taken = self._list.take(text)
        if self._list.closed:
            self._take, self._held, self._spaces = self._tail, "", []
            self.take(text[taken:])

    def _tail(self, text: str) -> None:
        """After a list: the card's textual end mark, or more of the answer."""
        for position, c in enumerate(text):
            if c in SPACES and not self._held:
                self._spaces.append(c)
                continue
            self._held += c
            if self._held == END_CALLS:
                self._take, self._held = self._plain, ""
                self.take(text[position + 1 :])
                return
            if not END_CALLS.startswith(self._held):
                held, self._held = "".join(self._spaces) + self._held, ""
                self._take = self._plain
                self._plain(held + text[position + 1 :])
                return

    def _begin_arguments(self, name: str, id_: str | None) -> None:
        self.begin(name, id_ or self._new_id())
        self._take, self._parts = self._in_arguments, []

    def _leave_arguments(self, cut: bool) -> None:
        written = "".join(self._arguments).strip(SPACES)
        if not written and not cut:
            self.arguments("{}")  # a function without parameters
        self.end(None, complete=not cut or written[:1] in ("{", "[", '"'))

    def _leave_name(self, cut: bool) -> None:
        name = self._written()
        if cut:
            self._no_call("a tool call breaks off before its arguments; it is in the text")
        elif _is_name(name):
            self._begin_arguments(name, None)
            self._leave_arguments(cut=False)
        else:
            self._no_call("what follows [TOOL_CALLS] names no function; it is in the text")

    def _no_call(self, message: str) -> None:
        self._emit(Fault(message))
        self._emit(TextDelta("".join(self._parts)))
        self._take, self._parts = self._plain, []


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _NAME_LENGTH and _NAME.issuperset(text)
