"""Talk: a record of a data file as a training conversation, in the common spellings. Images are not opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.errors import PromptError
from vitrail.prompts.builtin.turns import read_weight
from vitrail.prompts.messages import ImagePart, Message, normalize
from vitrail.train.spellings import NOTES, to_messages

_MESSAGES = ("messages", "interactions")
_TOOLS = ("tools", "available_tools")
_SPELT = ("conversations", "prompt", "completion", "image", "system")  # read by spellings.py
_KEYS = (*_MESSAGES, *_TOOLS, "system_prompt", "images", "only_last", "reasoning_effort")


@dataclass(frozen=True, slots=True)
class Talk:
    """One conversation. Per message, `learned`: whether it is a target answer; `weights`: the answer's weight."""

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    weights: tuple[int | None, ...]
    tools: list[Any] | None = None
    reasoning_effort: str | None = None


def read_talk(value: Any, folder: Path) -> Talk:
    """Parse a record into a conversation.

    Args:
        value: a list of messages, or an object with "messages" (or "interactions") and optionally "tools" (or
            "available_tools"), "system_prompt", "images" for images without a source, "only_last", "reasoning_effort". A
            message's text may be under "text"; an assistant's "weight" of 0 excludes it. Other spellings: `to_messages`.
        folder: base of relative paths.
    """
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, Mapping):
        raise PromptError("expected a list of messages or an object with 'messages'")
    known = (*_KEYS, *_SPELT)
    unknown = [
        key
        for key in value
        if key not in (*known, *NOTES) and value[key] is not None and value[key] is not False
    ]
    if unknown:
        raise PromptError(f"{', '.join(map(str, unknown))[:200]}: not read; known are {', '.join(known)}")
    value = to_messages(value)
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
    """Return a message in Vitrail's form: text under "content", without a weight."""
    if not isinstance(message, Mapping):
        return message
    plain = {key: value for key, value in message.items() if key not in ("weight", "text")}
    if message.get("text") is not None:
        if plain.get("content") is not None:
            raise PromptError("a message has 'text' and 'content'; give one of them")
        plain["content"] = message["text"]
    return plain


def _placed(messages: list[Message], images: Any, folder: Path) -> list[Message]:
    """Return the messages with an absolute source for every image."""
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
                    "an image has no source; give its 'image_url', or the list 'images' beside 'messages'"
                )
            part = replace(part, source=_from(folder, source))
        parts.append(part)
    return replace(message, content=tuple(parts))


def _from(folder: Path, source: Any) -> Any:
    """Return a source; a relative path is resolved against `folder`."""
    if isinstance(source, Mapping):  # as in `datasets` and Parquet
        source = source.get("bytes") or source.get("path") or source.get("url")
    if isinstance(source, bytes) or hasattr(source, "convert"):  # an encoded image, or a PIL image
        return source
    if not isinstance(source, str):
        raise PromptError(f"an image's source is a text, bytes or a PIL image, got {type(source).__name__}")
    named = "://" in source[:20] or source.startswith("data:")
    return source if named or Path(source).is_absolute() else str(folder / source)
