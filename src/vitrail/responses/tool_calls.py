"""CallReader: text after [TOOL_CALLS] to calls: JSON lists (v2 to v7, card), names and [ARGS] (v11 and later)."""

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
    """Create an id for a call: nine letters and digits, as v3 to v11 require."""
    return "".join(secrets.choice(_ID) for _ in range(9))


class CallReader:
    """Converts the text after [TOOL_CALLS], and the control tokens in it, to pieces.

    Args:
        emit: Callback for each piece.
        new_id: Creates a call id.
        fresh: Ids of `new_id` for all calls, instead of the model's.
    """

    def __init__(self, emit: Callable[[Piece], None], new_id: Callable[[], str], *, fresh: bool) -> None:
        self._emit = emit
        self._new_id = new_id
        self._fresh = fresh
        self._ids: dict[int, str] = {}  # call index → id
        self._used: set[str] = set()
        self._count = 0
        self._take: Callable[[str], None] = self._plain
        self._list = CallList(self)
        self._parts: list[str] = []  # the current name or id
        self._named = False  # whether the name has more than spaces
        self._held = ""  # a possible prefix of the end mark
        self._spaces: list[str] = []  # white space between a list and its end mark
        self._name = ""
        self._arguments: list[str] = []

    def enter(self) -> None:
        """Process [TOOL_CALLS]."""
        self._take, self._held, self._parts, self._named = self._head, "", [], False

    def take(self, text: str) -> None:
        """Process text."""
        if text:
            self._take(text)

    def control(self, token: str) -> bool:
        """Process [CALL_ID], [ARGS] or [/TOOL_CALLS]; return whether it is valid here."""
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
        """End the calls at a control token, or (`cut`) at the end of the ids."""
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
        """Begin a call: its function's name is complete."""
        self._arguments = []
        told = self._unused(self._new_id() if self._fresh else id_)
        if told is not None:
            self._keep_id(told)
        self._emit(CallBegin(self._count, name, told))

    def arguments(self, text: str) -> None:
        """Append to its arguments."""
        self._arguments.append(text)
        self._emit(ArgumentsDelta(self._count, text))

    def end(self, id_: str | None, *, complete: bool) -> None:
        """End the call. complete: whether its arguments ended as the format requires."""
        told = self._count in self._ids
        if not told:
            self._keep_id(self._unused(id_) or self._new_id())
        valid = complete and is_json("".join(self._arguments))
        if not valid:
            self._emit(Fault(f"the arguments of call {self._count} are not JSON"))
        self._emit(CallEnd(self._count, self._ids[self._count], valid, new_id=not told))
        self._count += 1

    def stray(self, text: str) -> None:
        """Pass on characters outside of calls."""
        self._emit(TextDelta(text))

    def fault(self, message: str) -> None:
        """Report a violation of the format."""
        self._emit(Fault(message))

    def _unused(self, id_: str | None) -> str | None:
        """Return `id_`; for the id of an earlier call, which would make results ambiguous, None or a new id."""
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
        """Skip spaces, and choose the form of the calls by the first other character."""
        begun = text.lstrip(SPACES)
        if not begun:
            return
        if begun[0] in "[{":
            self._list, self._take = CallList(self), self._in_list
        else:
            self._take = self._in_name
        self._take(begun)

    def _in_name(self, text: str) -> None:
        """Process a function's name; some models write the arguments after it without [ARGS]."""
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
        """Process text after a list: the card's textual end mark, or more of the answer."""
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
