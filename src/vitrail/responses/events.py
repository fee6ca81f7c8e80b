"""Response: a model's answer, and the pieces that it streams as; parser.py creates them from ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A further piece of the answer's text."""

    text: str

    def delta(self) -> dict[str, Any]:
        """Return the `delta` of an OpenAI stream."""
        return {"content": self.text}


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A further piece of the reasoning.

    Attributes:
        opens: Whether it begins a new chunk.
        closes: Whether it ends a chunk with the model's own end token.
    """

    text: str
    opens: bool = False
    closes: bool = False

    def delta(self) -> dict[str, Any]:
        """Return the `delta` of an OpenAI stream."""
        return {"reasoning": self.text}


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The begin of a tool call: its function's name. `id`: None if the model writes it after the arguments."""

    index: int
    name: str
    id: str | None

    def delta(self) -> dict[str, Any]:
        """Return the `delta` of an OpenAI stream."""
        call = {"index": self.index, "type": "function", "function": {"name": self.name, "arguments": ""}}
        return {"tool_calls": [call if self.id is None else {**call, "id": self.id}]}


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """A further piece of the arguments of call `index`, in the model's spelling."""

    index: int
    text: str

    def delta(self) -> dict[str, Any]:
        """Return the `delta` of an OpenAI stream."""
        return {"tool_calls": [{"index": self.index, "function": {"arguments": self.text}}]}


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of call `index`.

    Attributes:
        is_json: Whether its arguments are valid JSON.
        new_id: Whether CallBegin had no id.
    """

    index: int
    id: str
    is_json: bool
    new_id: bool = False

    def delta(self) -> dict[str, Any]:
        """Return the `delta` of an OpenAI stream: the id if CallBegin had none."""
        return {"tool_calls": [{"index": self.index, "id": self.id}]} if self.new_id else {}


@dataclass(frozen=True, slots=True)
class Fault:
    """A violation of the format in the answer. `message`: the violation, and what became of its characters."""

    message: str

    def delta(self) -> dict[str, Any]:
        """Return an empty `delta`: OpenAI streams have none for faults."""
        return {}


Piece: TypeAlias = TextDelta | ReasoningDelta | CallBegin | ArgumentsDelta | CallEnd | Fault


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call.

    Attributes:
        arguments: The model's own text, not validated by a schema.
        is_json: Whether `arguments` is valid JSON.
    """

    id: str
    name: str
    arguments: str
    is_json: bool

    @property
    def value(self) -> Any:
        """The arguments as a Python value; the text itself if they are not JSON."""
        return json.loads(self.arguments) if self.is_json else self.arguments

    def as_openai(self) -> dict[str, Any]:
        """Return the call in the form of an OpenAI message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of text or of reasoning. `closed`: whether the model ended it with its end token."""

    text: str
    reasoning: bool = False
    closed: bool = True

    def as_part(self) -> dict[str, Any]:
        """Return the chunk as a part of a message's content."""
        if not self.reasoning:
            return {"type": "text", "text": self.text}
        part = {"type": "thinking", "thinking": self.text}
        return part if self.closed else {**part, "closed": False}


@dataclass(frozen=True)
class Response:
    """A whole answer.

    Attributes:
        chunks: Text and reasoning in their order.
        tool_calls: Tool calls in their order.
        faults: Descriptions of the violations of the format.
        ended_by: The control token that ended the turn; None if generation stopped without one (length limit).
        rest: Ids after the end of the turn (for example another turn by the model), without padding.
    """

    chunks: tuple[Chunk, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    faults: tuple[str, ...] = ()
    ended_by: str | None = None
    rest: tuple[int, ...] = ()

    @cached_property
    def text(self) -> str:
        """The answer without reasoning and tool calls."""
        return "".join(chunk.text for chunk in self.chunks if not chunk.reasoning)

    @cached_property
    def reasoning(self) -> str:
        """All reasoning, joined."""
        return "".join(chunk.text for chunk in self.chunks if chunk.reasoning)

    def as_openai(self) -> dict[str, Any]:
        """Return the message in the form of OpenAI's API, with `reasoning` next to `content`."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        return self._with_calls(message)

    def as_message(self) -> dict[str, Any]:
        """Return the message for the next prompt: `apply_chat_template` reproduces its ids.

        Reasoning is in the content, as parts of type "thinking" in their order.
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
    """Builds a Response from its pieces, so that the streamed and the whole answer are the same."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Chunk, list[str]]] = []
        self._calls: list[tuple[ToolCall, list[str]]] = []
        self._faults: list[str] = []

    def add(self, pieces: Iterable[Piece]) -> None:
        """Append pieces."""
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
        """Return the response of the pieces so far. ended_by, rest: as in Response."""
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
    """Return whether `json.loads` reads `text` as one JSON value; NaN and Infinity are none."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (
        ValueError,
        RecursionError,
    ):  # no JSON, an integer of too many digits, too deep nesting
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
