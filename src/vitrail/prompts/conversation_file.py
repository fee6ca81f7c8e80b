"""Conversation: files of conversations (one as JSON, many as JSON Lines) and of tools. Roles are checked elsewhere."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.errors import PromptError
from vitrail.files.json import JSON_LIMIT
from vitrail.files.lfs import refuse_pointer

_KEYS = ("messages", "tools", "continue_final_message", "reasoning_effort")
_RECORDED = ("ids", "text", "grids", "pictures")  # further keys of recorded prompts


@dataclass(frozen=True, slots=True)
class Conversation:
    """The arguments of one prompt.

    Attributes:
        place: Place in its file, for error messages; "" for the only conversation.
    """

    messages: list[Any]
    tools: list[Any] | None = None
    continue_final_message: bool = False
    reasoning_effort: str | None = None
    place: str = ""


def read_conversations(data: bytes, name: str) -> list[Conversation]:
    """Read the conversations of a file.

    Args:
        data: A JSON list of messages, a JSON object with "messages" and optionally "tools", "continue_final_message"
            and "reasoning_effort", or one such list or object a line.
        name: File name for error messages.

    Raises:
        PromptError: The file is too large, not UTF-8, not JSON or no conversation; with the line.
    """
    text = _text(data, name)
    try:
        return [_conversation(_parse(text), name, "")]
    except ValueError as error:
        if isinstance(error, PromptError):
            raise
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not _opens_and_closes(lines[0][1]):
            raise PromptError(f"{name} is not valid JSON: {error}") from error
    found = []
    for number, line in lines:
        place = f"line {number}"
        try:
            value = _parse(line)
        except ValueError as error:
            raise PromptError(f"{name}, {place}: not valid JSON: {error}") from error
        found.append(_conversation(value, name, place))
    return found


def read_tools_file(data: bytes, name: str) -> list[Any]:
    """Read the tools of a file: a JSON list, or an object with the list under "tools".

    Raises:
        PromptError: The file is too large, not UTF-8, not JSON or no list of tools.
    """
    try:
        value = _parse(_text(data, name))
    except PromptError:
        raise
    except ValueError as error:
        raise PromptError(f"{name} is not valid JSON: {error}") from error
    if isinstance(value, Mapping):
        value = value.get("tools")
    if not isinstance(value, list):
        raise PromptError(f"{name}: expected a list of tools, or an object with 'tools'")
    return value


def _text(data: bytes, name: str) -> str:
    if len(data) > JSON_LIMIT:
        raise PromptError(f"{name} is larger than the {JSON_LIMIT:,} bytes that such a file may have")
    refuse_pointer(data, name, PromptError)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}"
        ) from error
    if not text.strip():
        raise PromptError(f"{name} is empty; expected a conversation as JSON")
    return text


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise PromptError("a value is nested too deeply to be read") from error


def _opens_and_closes(line: str) -> bool:
    """Return whether a line looks like a whole JSON value, as in JSON Lines but not in a damaged JSON file."""
    line = line.strip()
    return (line[:1], line[-1:]) in (("{", "}"), ("[", "]"))


def _conversation(value: Any, name: str, place: str) -> Conversation:
    where = f"{name}, {place}" if place else name
    if isinstance(value, list):
        return Conversation(value, place=place)
    if not isinstance(value, dict) or "messages" not in value:
        raise PromptError(f"{where}: expected a list of messages, or an object with 'messages'")
    for key, kind, words in (
        ("messages", list, "a list"),
        ("tools", list, "a list or null"),
        ("continue_final_message", bool, "true or false"),
        ("reasoning_effort", str, "a text or null"),
    ):
        if value.get(key) is not None and not isinstance(value[key], kind):
            raise PromptError(f"{where}: {key}: expected {words}, got {type(value[key]).__name__}")
    if unknown := [key for key in value if key not in (*_KEYS, *_RECORDED)]:
        warnings.warn(f"{where}: {', '.join(unknown)} is not read", stacklevel=3)
    return Conversation(
        value["messages"] or [],
        value.get("tools"),
        bool(value.get("continue_final_message")),
        value.get("reasoning_effort"),
        place,
    )
