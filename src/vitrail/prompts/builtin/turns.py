"""Turn: conversations in the form that all built-in formats share, with contents, calls and results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from vitrail.errors import PromptError
from vitrail.prompts.builtin.json_text import read_json_or_text
from vitrail.prompts.builtin.pieces import Image
from vitrail.prompts.messages import ImagePart, Message, TextPart, ThinkPart, normalize

NO_ID = "null"  # the id of a call without one

Item: TypeAlias = "str | ThinkPart | Image"
Content: TypeAlias = "str | tuple[Item, ...]"


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. `arguments`: the parsed JSON value, or the text if it was no JSON."""

    id: str
    name: str
    arguments: Any


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    Attributes:
        index: Its place in the conversation.
        prefix: Whether it stays open at its end, to be continued.
        weight: 0 for an assistant's message without loss in training; 1 or None with loss.
    """

    index: int
    role: str
    content: Content
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None
    prefix: bool = False
    weight: int | None = None

    @property
    def place(self) -> str:
        """Place of the message, for errors."""
        return f"messages[{self.index}]"


def read_turns(conversation: Any, continue_final_message: bool) -> tuple[list[Turn], list[ImagePart]]:
    """Read a conversation in any spelling of `messages.normalize`.

    Returns:
        Its turns, and its images in order.

    Raises:
        PromptError: The conversation is malformed; with the message and the field.
    """
    messages = normalize(_completed(conversation))
    images: list[ImagePart] = []
    turns = [_turn(index, message, images) for index, message in enumerate(messages)]
    if continue_final_message:
        last = turns[-1]
        if last.role != "assistant":
            raise PromptError(
                f"{last.place}.role: continue_final_message continues an assistant's message; "
                f"the last one is of role {last.role!r}"
            )
        turns[-1] = replace(last, prefix=True)
    return turns, images


def read_weight(value: Any, place: str) -> int | None:
    """Return the weight of an assistant's message, 0, 1 or None. Raises PromptError for anything else."""
    if value is None:
        return None
    if value not in (0, 1):
        raise PromptError(f"{place}.weight: expected 0 or 1, got {value!r:.100}")
    return int(value)


def _completed(conversation: Any) -> Any:
    """Add empty contents to assistant messages without any; refuse results without a call id."""
    messages = getattr(conversation, "messages", conversation)
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        return messages
    return [_complete(message, index) for index, message in enumerate(messages)]


def _complete(message: Any, index: int) -> Any:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        if getattr(message, "role", None) == "assistant" and getattr(message, "content", None) is None:
            calls = getattr(message, "tool_calls", None)
            prefix = bool(getattr(message, "prefix", False))
            weight = getattr(message, "weight", None)
            return {
                "role": "assistant",
                "content": "",
                "tool_calls": calls,
                "prefix": prefix,
                "weight": weight,
            }
        return message
    if message.get("role") == "assistant" and message.get("content") is None:
        return {**message, "content": ""}
    if message.get("role") == "tool" and "tool_call_id" not in message:
        raise PromptError(f"messages[{index}].tool_call_id: a tool result names the call that it answers")
    content = message.get("content")
    for number, part in enumerate(content if isinstance(content, (list, tuple)) else ()):
        if isinstance(part, Mapping) and part.get("type") == "text" and "text" not in part:
            raise PromptError(
                f"messages[{index}].content[{number}].text: missing; Mistral's formats read a part's text there, and "
                "not under 'content', as some chat templates do"
            )
    return message


def _turn(index: int, message: Message, images: list[ImagePart]) -> Turn:
    place = f"messages[{index}]"
    role = "system" if message.role == "developer" else message.role
    content = _content(message, place, images)
    if role != "assistant":
        return Turn(index, role, content, call_id=message.tool_call_id, name=message.name)
    reasoning = _reasoning(message, place)
    if reasoning is not None:
        if isinstance(content, tuple) and any(isinstance(item, ThinkPart) for item in content):
            raise PromptError(f"{place}: give thinking parts in content, or reasoning, not both")
        content = (ThinkPart(reasoning), *((content,) if isinstance(content, str) else content))
    calls = tuple(
        _call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(message.tool_calls)
    )
    weight = read_weight(message.extra.get("weight"), place)
    return Turn(index, role, content, calls, prefix=bool(message.extra.get("prefix")), weight=weight)


def _content(message: Message, place: str, images: list[ImagePart]) -> Content:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    items: list[Item] = []
    for number, part in enumerate(message.content):
        if isinstance(part, TextPart):
            items.append(part.text)
        elif isinstance(part, ImagePart):
            items.append(Image(len(images)))
            images.append(part)
        elif isinstance(part.thinking, str):
            items.append(part)
        else:
            raise PromptError(f"{place}.content[{number}].thinking: expected a text, got a list of parts")
    return tuple(items)


def _reasoning(message: Message, place: str) -> str | None:
    given = {name: message.extra.get(name) for name in ("reasoning_content", "reasoning")}
    texts = [text for text in given.values() if text is not None]
    for name, text in given.items():
        if text is not None and not isinstance(text, str):
            raise PromptError(f"{place}.{name}: expected a text, got {type(text).__name__}")
    if len(set(texts)) > 1:
        raise PromptError(f"{place}: reasoning and reasoning_content say different things; give one of them")
    return texts[0] if texts else None


def _call(call: Mapping[str, Any], place: str) -> Call:
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise PromptError(f"{place}.function: expected {{'name': …, 'arguments': …}}")
    if call.get("type", "function") != "function":
        raise PromptError(f"{place}.type: expected 'function', got {call['type']!r}")
    identity, name = call.get("id", NO_ID), function.get("name")
    for field, value in (("id", identity), ("function.name", name)):
        if not isinstance(value, str):
            raise PromptError(f"{place}.{field}: expected a text, got {type(value).__name__}")
    if "arguments" not in function:
        raise PromptError(f"{place}.function.arguments: missing; give a JSON text or an object")
    return Call(str(identity), str(name), _arguments(function["arguments"], f"{place}.function.arguments"))


def _arguments(given: Any, place: str) -> Any:
    if given is None:
        return {}
    if isinstance(given, dict):
        try:
            given = json.dumps(given)  # converts keys to texts, as in any JSON
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(f"{place}: cannot be written as JSON: {error}") from error
    if not isinstance(given, str):
        raise PromptError(f"{place}: expected a JSON text or an object, got {type(given).__name__}")
    return read_json_or_text(given, place)
