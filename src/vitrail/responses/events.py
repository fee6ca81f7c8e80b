"""What a model answered: pieces while it streams, and the whole. Plain values; ids are read in parser.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str

    def delta(self) -> dict[str, Any]:
        """The `delta` of an OpenAI stream."""
        return {"content": self.text}


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the reasoning. `opens` begins a new chunk, `closes` is the end of one that the model ended itself."""

    text: str
    opens: bool = False
    closes: bool = False

    def delta(self) -> dict[str, Any]:
        """The `delta` of an OpenAI stream."""
        return {"reasoning": self.text}


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call whose function is known. `id`: None where the model writes it after the arguments."""

    index: int
    name: str
    id: str | None

    def delta(self) -> dict[str, Any]:
        """The `delta` of an OpenAI stream."""
        call = {"index": self.index, "type": "function", "function": {"name": self.name, "arguments": ""}}
        return {"tool_calls": [call if self.id is None else {**call, "id": self.id}]}


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the arguments of call `index`, as the model writes them."""

    index: int
    text: str

    def delta(self) -> dict[str, Any]:
        """The `delta` of an OpenAI stream."""
        return {"tool_calls": [{"index": self.index, "function": {"arguments": self.text}}]}


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Call `index` is complete. `is_json`: whether its arguments are; `new_id`: whether `id` was unknown so far."""

    index: int
    id: str
    is_json: bool
    new_id: bool = False

    def delta(self) -> dict[str, Any]:
        """The `delta` of an OpenAI stream: the id, if it comes only now."""
        return {"tool_calls": [{"index": self.index, "id": self.id}]} if self.new_id else {}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in the answer that was not as the format has it; where its characters went is said in `message`."""

    message: str

    def delta(self) -> dict[str, Any]:
        """The `delta` of an OpenAI stream: there is none for this."""
        return {}


Piece: TypeAlias = TextDelta | ReasoningDelta | CallBegin | ArgumentsDelta | CallEnd | Fault


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: `arguments` is the model's own text. It is JSON where `is_json`; nothing says that it fits a schema."""

    id: str
    name: str
    arguments: str
    is_json: bool

    @property
    def value(self) -> Any:
        """The arguments as a Python value; the text itself where they are not JSON."""
        return json.loads(self.arguments) if self.is_json else self.arguments

    def as_openai(self) -> dict[str, Any]:
        """The call as an OpenAI message spells it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of text, or of reasoning (`closed`: whether the model ended it itself)."""

    text: str
    reasoning: bool = False
    closed: bool = True

    def as_part(self) -> dict[str, Any]:
        """The part of a message's content."""
        if not self.reasoning:
            return {"type": "text", "text": self.text}
        part = {"type": "thinking", "thinking": self.text}
        return part if self.closed else {**part, "closed": False}


@dataclass(frozen=True)
class Response:
    """A whole answer.

    chunks: text and reasoning in the order written. tool_calls: the calls. faults: what was not as the format has
    it, in words. ended_by: the control token that ended the turn, None where the ids just stopped (a length limit).
    rest: the ids from there on that belong to no answer (a turn that the model went on to invent), without padding.
    """

    chunks: tuple[Chunk, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    faults: tuple[str, ...] = ()
    ended_by: str | None = None
    rest: tuple[int, ...] = ()

    @cached_property
    def text(self) -> str:
        """The answer without reasoning and calls."""
        return "".join(chunk.text for chunk in self.chunks if not chunk.reasoning)

    @cached_property
    def reasoning(self) -> str:
        """All reasoning, chunk after chunk."""
        return "".join(chunk.text for chunk in self.chunks if chunk.reasoning)

    def as_openai(self) -> dict[str, Any]:
        """The message as OpenAI's API spells it, with `reasoning` beside `content`."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        return self._with_calls(message)

    def as_message(self) -> dict[str, Any]:
        """The message to put into the conversation: `apply_chat_template` gives the same ids again.

        Reasoning stands in the content, as parts of type "thinking" in the order written.
        """
        content: Any = self.text
        if any(chunk.reasoning for chunk in self.chunks):
            content = [chunk.as_part() for chunk in self.chunks]
        return self._with_calls({"role": "assistant", "content": content})

    def _with_calls(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.tool_calls:
            message["tool_calls"] = [call.as_openai() for call in self.tool_calls]
        return message


class ResponseBuilder:
    """Puts pieces together. What streams and what is returned whole are therefore the same."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Chunk, list[str]]] = []
        self._calls: list[tuple[ToolCall, list[str]]] = []
        self._faults: list[str] = []

    def add(self, pieces: Iterable[Piece]) -> None:
        """Take the next pieces."""
        for piece in pieces:
            if isinstance(piece, TextDelta):
                if not self._chunks or self._chunks[-1][0].reasoning:
                    self._chunks.append((Chunk(""), []))
                self._chunks[-1][1].append(piece.text)
            elif isinstance(piece, ReasoningDelta):
                self._add_reasoning(piece)
            elif isinstance(piece, CallBegin):
                self._calls.append((ToolCall(piece.id or "", piece.name, "", is_json=False), []))
            elif isinstance(piece, ArgumentsDelta):
                self._calls[piece.index][1].append(piece.text)
            elif isinstance(piece, CallEnd):
                call, texts = self._calls[piece.index]
                self._calls[piece.index] = (replace(call, id=piece.id, is_json=piece.is_json), texts)
            else:
                self._faults.append(piece.message)

    def response(self, ended_by: str | None, rest: tuple[int, ...]) -> Response:
        """What the pieces so far say."""
        return Response(
            tuple(replace(chunk, text="".join(texts)) for chunk, texts in self._chunks),
            tuple(replace(call, arguments="".join(texts)) for call, texts in self._calls),
            tuple(self._faults),
            ended_by,
            rest,
        )

    def _add_reasoning(self, piece: ReasoningDelta) -> None:
        if piece.opens or not self._chunks:
            self._chunks.append((Chunk("", reasoning=True, closed=False), []))
        chunk, texts = self._chunks[-1]
        texts.append(piece.text)
        self._chunks[-1] = (replace(chunk, closed=piece.closes), texts)


def is_json(text: str) -> bool:
    """Whether `text` is one JSON value that `json.loads` reads; NaN and Infinity are none."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (
        ValueError,
        RecursionError,
    ):  # what is no JSON, an integer of too many digits, nesting beyond reason
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
