"""Lines of JSON → conversations to learn from, in the spellings of `ask`, OpenAI and mistral-finetune. Opens no pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.errors import InputError, PromptError
from vitrail.files.lfs import refuse_pointer
from vitrail.prompts.builtin.turns import read_weight
from vitrail.prompts.messages import ImagePart, Message, normalize

LINE_LIMIT = 64 * 1024 * 1024  # bytes of one line: pictures may stand in it as data URLs
_MESSAGES = ("messages", "interactions")
_TOOLS = ("tools", "available_tools")
_KEYS = (*_MESSAGES, *_TOOLS, "system_prompt", "images", "only_last", "reasoning_effort")


@dataclass(frozen=True, slots=True)
class Talk:
    """One conversation. For each message, `learned`: whether it is an answer to learn; `weights`: an answer's weight."""

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    weights: tuple[int | None, ...]
    tools: list[Any] | None = None
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Where a line of a file is: its number, counted from 1, and its bytes."""

    number: int
    offset: int
    size: int


def find_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank. InputError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            offset = 0
            for number, text in enumerate(stream, 1):
                if number == 1:
                    refuse_pointer(text, str(path), InputError)
                if text.strip():
                    yield Line(number, offset, len(text))
                offset += len(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def read_line(path: Path, line: Line) -> Talk:
    """The conversation on a line; pictures named by relative paths lie beside the file. PromptError without the place."""
    if line.size > LINE_LIMIT:
        raise PromptError(f"the line has {line.size:,} bytes, more than the {LINE_LIMIT:,} that one may have")
    try:
        with path.open("rb") as stream:
            stream.seek(line.offset)
            data = stream.read(line.size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return read_talk(parse(data), path.parent)


def parse(data: bytes) -> Any:
    """The JSON value of a line. PromptError says what is wrong with it."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PromptError(f"not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from error
    except RecursionError as error:
        raise PromptError("a value is nested too deeply to be read") from error
    except ValueError as error:
        raise PromptError(f"not valid JSON: {error}") from error


def read_talk(value: Any, folder: Path) -> Talk:
    """A parsed line → a conversation.

    value: a list of messages, or an object with "messages" (or "interactions") and perhaps "tools" (or
    "available_tools"), "system_prompt", "images" for the pictures without a source, "only_last", "reasoning_effort". A
    message's text may stand under "text"; an assistant's "weight" of 0 leaves it out. folder: where relative paths begin.
    """
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, Mapping):
        raise PromptError("expected a list of messages or an object with 'messages'")
    if unknown := [key for key in value if key not in _KEYS and value[key] not in (None, False)]:
        raise PromptError(f"{', '.join(map(str, unknown))[:200]}: not read; known are {', '.join(_KEYS)}")
    raw = _one_of(value, _MESSAGES, "list")
    if not raw:
        raise PromptError("expected a list of messages under 'messages'")
    if value.get("system_prompt") is not None:
        raw = [{"role": "system", "content": value["system_prompt"]}, *raw]
    messages = _placed(normalize([_plain(message) for message in raw]), value.get("images"), folder)
    weights = [
        read_weight(message.get("weight") if isinstance(message, Mapping) else None, f"messages[{index}]")
        for index, message in enumerate(raw)
    ]
    answers = [message.role == "assistant" for message in messages]
    learned = [answer and weight != 0 for answer, weight in zip(answers, weights, strict=True)]
    if value.get("only_last") and True in learned:
        last = len(learned) - 1 - learned[::-1].index(True)
        learned = [index == last for index in range(len(learned))]
        weights = [int(learn) if answer else None for learn, answer in zip(learned, answers, strict=True)]
    if True not in answers:
        raise PromptError("there is no assistant message to learn from")
    if True not in learned:
        raise PromptError("no assistant message counts: each has the weight 0")
    effort = value.get("reasoning_effort")
    if effort is not None and not isinstance(effort, str):
        raise PromptError(f"reasoning_effort: expected a text, got {type(effort).__name__}")
    return Talk(tuple(messages), tuple(learned), tuple(weights), _one_of(value, _TOOLS, "list"), effort)


def _one_of(value: Mapping[str, Any], names: tuple[str, ...], kind: str) -> Any:
    given = {name: value[name] for name in names if value.get(name) is not None}
    if len(given) > 1:
        raise PromptError(f"give {' or '.join(map(repr, given))}, not both")
    for name, found in given.items():
        if not isinstance(found, list):
            raise PromptError(f"{name}: expected a {kind}, got {type(found).__name__}")
        return found
    return None


def _plain(message: Any) -> Any:
    """A message as the rest of Vitrail reads it: its text under "content", without a weight."""
    if not isinstance(message, Mapping):
        return message
    plain = {key: value for key, value in message.items() if key not in ("weight", "text")}
    if message.get("text") is not None:
        if plain.get("content") is not None:
            raise PromptError("a message has 'text' and 'content'; give one of them")
        plain["content"] = message["text"]
    return plain


def _placed(messages: list[Message], images: Any, folder: Path) -> list[Message]:
    """The messages, every picture with a source that can be opened from anywhere."""
    if images is not None and not isinstance(images, list):
        raise PromptError(f"images: expected a list, got {type(images).__name__}")
    rest = iter(images or [])
    placed = [_with_sources(message, rest, folder) for message in messages]
    if left := sum(1 for _ in rest):
        raise PromptError(f"images: {left} of {len(images or [])} have no place in the messages")
    return placed


def _with_sources(message: Message, rest: Iterator[Any], folder: Path) -> Message:
    if not isinstance(message.content, tuple):
        return message
    parts = []
    for part in message.content:
        if isinstance(part, ImagePart):
            source = next(rest, None) if part.source is None else part.source
            if source is None:
                raise PromptError(
                    "a picture has no source; give its 'image_url', or the list 'images' beside 'messages'"
                )
            part = replace(part, source=_from(folder, source))
        parts.append(part)
    return replace(message, content=tuple(parts))


def _from(folder: Path, source: Any) -> Any:
    """A source; a relative path from `folder`."""
    if isinstance(source, Mapping):  # the datasets' spelling of a file
        source = source.get("path") or source.get("url")
    if not isinstance(source, str):
        raise PromptError(f"a picture's source is a text, got {type(source).__name__}")
    named = "://" in source[:20] or source.startswith("data:")
    return source if named or Path(source).is_absolute() else str(folder / source)
