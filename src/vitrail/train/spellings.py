"""Conversion of LLaVA, ShareGPT, LLaMA-Factory and TRL records to {"messages": …} as read by conversations.py."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vitrail.arguments import short
from vitrail.errors import PromptError

# Metadata that data sets include and that does not affect a conversation.
NOTES = ("id", "idx", "index", "source", "dataset", "category", "metadata", "split", "language")
_MARK = re.compile(r"\n?<image>\n?")
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "assistant": "assistant", "function_call": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip


def to_messages(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its conversation under "messages", images as a list under "images", and tools as a list.

    conversations        turns {"from", "value"}, as in LLaVA and ShareGPT; `<image>` in a text is an image.
    prompt, completion   texts or lists of messages, as in TRL; only the completion is a target.
    image                one image, or a list: the same as "images". system: the same as "system_prompt".
    tools                may be a JSON list as text.

    Raises:
        PromptError: a malformed record.
    """
    found = {key: value for key, value in record.items() if key not in NOTES and value is not None}
    _rename(found, "image", "images", lambda value: value if isinstance(value, list) else [value])
    _rename(found, "system", "system_prompt", lambda value: value)
    if isinstance(found.get("tools"), str):
        found["tools"] = _parsed(found["tools"], "tools") if found["tools"].strip() else None
    if ("prompt" in found) != ("completion" in found):
        raise PromptError("'prompt' and 'completion' belong together; one of them is missing")
    if "conversations" in found:
        _rename(found, "conversations", "messages", _turns)
    elif "prompt" in found:
        prompt, completion = _said(found.pop("prompt"), "user"), _said(found.pop("completion"), "assistant")
        prompt = [{**one, "weight": 0} if one.get("role") == "assistant" else one for one in prompt]
        first = _placed_first(prompt, found.get("images"))
        _rename(found, "completion", "messages", lambda _: [*first, *completion], always=True)
    if found.get("images") is not None and isinstance(found.get("messages"), list):
        found["messages"] = [_marked(message) for message in found["messages"]]
    return found


def _rename(found: dict[str, Any], old: str, new: str, change: Any, *, always: bool = False) -> None:
    if old not in found and not always:
        return
    if found.get(new) is not None:
        raise PromptError(f"give {old!r} or {new!r}, not both")
    found[new] = change(found.pop(old, None))


def _turns(turns: Any) -> list[Any]:
    """Convert turns to messages; calls get ids, which the observations after them refer to."""
    if not isinstance(turns, list):
        raise PromptError(f"conversations: expected a list, got {type(turns).__name__}")
    messages: list[Any] = []
    waiting: list[str] = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or "role" in turn:
            messages.append(turn)
            continue
        name, value = turn.get("from"), turn.get("value")
        if not isinstance(name, str) or name not in _ROLES:
            raise PromptError(
                f"conversations[{place}].from: expected one of {', '.join(_ROLES)}; got {short(name)}"
            )
        if not isinstance(value, str):
            raise PromptError(f"conversations[{place}].value: expected a text, got {type(value).__name__}")
        if unknown := set(turn) - {"from", "value", "weight"}:
            raise PromptError(
                f"conversations[{place}]: {', '.join(sorted(map(str, unknown)))[:200]} is not read"
            )
        message: dict[str, Any] = {"role": _ROLES[name], "content": value}
        if "weight" in turn:
            message["weight"] = turn["weight"]
        if name == "function_call":
            message["content"], message["tool_calls"] = None, _calls(value, place, waiting)
        elif message["role"] == "tool" and waiting:
            message["tool_call_id"] = waiting.pop(0)
        messages.append(message)
    return messages


def _calls(value: str, place: int, waiting: list[str]) -> list[dict[str, Any]]:
    calls = _parsed(value, f"conversations[{place}].value")
    made = []
    for number, call in enumerate(calls if isinstance(calls, list) else [calls]):
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise PromptError(f"conversations[{place}].value: expected a call with 'name' and 'arguments'")
        waiting.append(f"{place:05d}{number:04d}"[-9:])
        function = {"name": call["name"], "arguments": call.get("arguments", {})}
        made.append({"type": "function", "id": waiting[-1], "function": function})
    return made


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: not valid JSON: {error}") from error


def _said(value: Any, role: str) -> list[Any]:
    """Convert a text to a message of `role`; a message or a list of them is returned unchanged."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    messages = value if isinstance(value, list) else [value]
    if not all(isinstance(message, Mapping) for message in messages):
        raise PromptError("'prompt' and 'completion': expected a text or a list of messages")
    return messages


def _placed_first(prompt: list[Any], images: Any) -> list[Any]:
    """Insert images without a placeholder before the first question's text, as TRL does."""
    texts = [message.get("content") for message in prompt]
    if not images or any(not isinstance(text, str) or "<image>" in text for text in texts):
        return prompt
    for place, message in enumerate(prompt):
        if message.get("role") == "user":
            parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": message["content"]}]
            return [*prompt[:place], {**message, "content": parts}, *prompt[place + 1 :]]
    return prompt


def _marked(message: Any) -> Any:
    """Split a message's text at `<image>` into parts; a line break beside a mark is removed."""
    if not isinstance(message, Mapping):
        return message
    key = "content" if message.get("content") is not None else "text"
    text = message.get(key)
    if not isinstance(text, str) or "<image>" not in text:
        return message
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(_MARK.split(text)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return {**{name: value for name, value in message.items() if name != key}, "content": parts}
