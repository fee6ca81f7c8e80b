"""CallList: a streaming scanner for the list of tool calls of v2 to v7, `[{"name": …, "arguments": …, "id": …}]`.

One pass over the characters finds the ends of values by nesting depth; `json.loads` validates complete values.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

SPACES = " \t\n\r"  # white space in JSON
_OPEN, _CLOSE = "{[", "}]"
_KEYS = {"name", "arguments", "id", "type"}


class Calls(Protocol):
    """Callbacks of CallList."""

    def begin(self, name: str, id_: str | None) -> None:
        """Begin a call: its function's name is complete."""

    def arguments(self, text: str) -> None:
        """Append to its arguments."""

    def end(self, id_: str | None, *, complete: bool) -> None:
        """End the call. complete: whether its arguments ended as the format requires."""

    def stray(self, text: str) -> None:
        """Pass on characters outside of calls."""

    def fault(self, message: str) -> None:
        """Report a violation of the format."""


class _Value:
    """Finds the end of one JSON value."""

    def __init__(self, first: str) -> None:
        self._depth = 1 if first in _OPEN else 0
        self._string = first == '"'
        self._bare = not self._depth and not self._string
        self._escaped = False

    def goes_on(self, c: str) -> bool:
        """Advance by `c` and return whether it belongs to the value; for all characters after the first one."""
        if self._string:
            if self._escaped:
                self._escaped = False
            elif c == "\\":
                self._escaped = True
            elif c == '"':
                self._string = False
        elif self._bare:
            return c not in SPACES and c not in ",}]:"
        elif c == '"':
            self._string = True
        elif c in _OPEN:
            self._depth += 1
        elif c in _CLOSE:
            self._depth -= 1
        return True

    @property
    def closed(self) -> bool:
        """Whether the last character was read; always False for numbers and literals, which end at the next one."""
        return not self._bare and not self._string and not self._depth


class CallList:
    """Scans one list, or one object without brackets, character by character.

    After a violation of the grammar the rest is passed on unparsed: as arguments of the call that has begun, or as
    text. No characters are lost, and nothing raises.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._step: Callable[[str], None] = self._first
        self._bracket = False
        self._value: _Value | None = None
        self._text: list[str] = []  # the current key or value
        self._raw: list[str] = []  # all characters since the last `begin` or `end`
        self._out: list[str] = []  # arguments not yet passed on
        self._reset()
        self.closed = False

    def take(self, text: str) -> int:
        """Scan characters and return how many belong to the list; 0 after `closed`."""
        taken = 0
        for c in text:
            if self.closed:
                break
            if self._step == self._spill:
                self._out.append(text[taken:])
                taken = len(text)
                break
            self._raw.append(c)
            self._step(c)
            taken += 1
        self._flush()
        return taken

    def finish(self) -> None:
        """End the text."""
        if self.closed:
            return
        if self._step == self._spill:
            self._flush()
            if self._told:
                self._calls.end(self._id, complete=False)
        elif self._told:
            self._calls.fault(f"the call of {self._name} breaks off")
            self._flush()
            whole = "arguments" in self._seen and (self._key != "arguments" or self._step != self._in_value)
            self._calls.end(self._id, complete=whole)
        elif "".join(self._raw).strip(SPACES + "[,"):
            self._calls.fault("a tool call breaks off before its function is named; it is in the text")
            self._calls.stray("".join(self._raw))
        else:
            self._calls.fault("the list of tool calls is not closed")
        self.closed = True

    def _reset(self) -> None:
        self._name: str | None = None
        self._id: str | None = None
        self._key = ""
        self._seen: set[str] = set()
        self._told = False
        self._waiting = ""  # arguments before the name
        self._tail: list[str] = []  # characters after the arguments

    def _first(self, c: str) -> None:
        if c == "[":
            self._bracket, self._step = True, self._item_or_end
        elif c == "{":
            self._step = self._key_or_end
        elif c not in SPACES:
            self._break()

    def _item_or_end(self, c: str) -> None:
        if c == "]":
            self._close()
        else:
            self._item(c)

    def _item(self, c: str) -> None:
        if c == "{":
            self._step = self._key_or_end
        elif c not in SPACES:
            self._break()

    def _next_item(self, c: str) -> None:
        if c == ",":
            self._step = self._item
        elif c == "]":
            self._close()
        elif c not in SPACES:
            self._break()

    def _key_or_end(self, c: str) -> None:
        if c == "}":
            self._end_object(c)
        else:
            self._begin_key(c)

    def _begin_key(self, c: str) -> None:
        self._after(c)
        if c == '"':
            self._value, self._text, self._step = _Value(c), [c], self._in_key
        elif c not in SPACES:
            self._break()

    def _in_key(self, c: str) -> None:
        self._after(c)
        self._grow(c)
        if self._closed():
            self._key = self._literal() or ""
            self._step = self._colon

    def _colon(self, c: str) -> None:
        self._after(c)
        if c == ":":
            self._step = self._begin_value
        elif c not in SPACES:
            self._break()

    def _begin_value(self, c: str) -> None:
        if c in SPACES:
            self._after(c)
            return
        if c in ",}]:" or self._key in self._seen:
            self._after(c)
            self._break()
            return
        self._seen.add(self._key)
        self._value, self._text, self._step = _Value(c), [], self._in_value
        self._keep(c)

    def _in_value(self, c: str) -> None:
        if self._value is not None and not self._value.goes_on(c):
            self._end_value()
            if self._step == self._next_key:
                self._next_key(c)
            return
        self._keep(c)
        if self._closed():
            self._end_value()

    def _next_key(self, c: str) -> None:
        if c == "}":
            self._end_object(c)
            return
        self._after(c)
        if c == ",":
            self._step = self._begin_key
        elif c not in SPACES:
            self._break()

    def _keep(self, c: str) -> None:
        """Store a character of a value: pass on arguments of a call that has begun, buffer others."""
        if self._key == "arguments" and self._told:
            self._out.append(c)
        else:
            self._after(c)
            self._text.append(c)

    def _after(self, c: str) -> None:
        if "arguments" in self._seen and self._told:
            self._tail.append(c)

    def _grow(self, c: str) -> None:
        if self._value is not None:
            self._value.goes_on(c)
        self._text.append(c)

    def _closed(self) -> bool:
        return self._value is not None and self._value.closed

    def _end_value(self) -> None:
        self._step = self._next_key
        if self._key == "name":
            self._name = self._literal()
            if not self._name:
                self._break()
                return
            self._calls.begin(self._name, self._id)
            self._told = True
            self._raw = []
            self._out.append(self._waiting)
        elif self._key == "id":
            self._id = self._literal()
        elif self._key == "arguments" and not self._told:
            self._waiting = "".join(self._text)

    def _literal(self) -> str | None:
        """Return the text of the current JSON string, None for another value."""
        try:
            value = json.loads("".join(self._text))
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, str) else None

    def _end_object(self, c: str) -> None:
        if not self._told:
            self._break()
            return
        if "arguments" not in self._seen:
            self._out.append("{}")  # a function without parameters
        self._flush()
        if unknown := sorted(self._seen - _KEYS):
            self._calls.fault(f"the call of {self._name} has keys without a meaning: {', '.join(unknown)}")
        self._calls.end(self._id, complete=True)
        self._reset()
        self._raw = []
        self._step = self._next_item
        if not self._bracket:
            self._close()

    def _close(self) -> None:
        self._raw = []
        self.closed = True

    def _break(self) -> None:
        """Stop parsing at a violation of the grammar, by a character already in `_raw` (and `_tail`)."""
        if self._told:
            self._calls.fault(
                f"the call of {self._name} is not as it should be; the rest is in its arguments"
            )
            self._out.append("".join(self._tail) if "arguments" in self._seen else "".join(self._raw))
        else:
            self._calls.fault("a tool call is not as it should be; it is in the text")
            self._out.append("".join(self._raw))
        self._step = self._spill

    def _spill(self, c: str) -> None:
        self._out.append(c)

    def _flush(self) -> None:
        text, self._out = "".join(self._out), []
        if text and self._told:
            self._calls.arguments(text)
        elif text:
            self._calls.stray(text)
