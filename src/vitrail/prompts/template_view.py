"""View: messages as the mappings that a chat template reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from vitrail.errors import PromptError
from vitrail.prompts.control_token_mask import map_strings
from vitrail.prompts.messages import ImagePart, Message, Part, TextPart, ThinkPart

CONTINUE_HERE = "\U0010fffe"  # a noncharacter: marks the end of the last message's text
Exchange: TypeAlias = Callable[[str], str]


class _Part(dict[str, Any]):
    """A text part with its text under `text` and, for templates that read it there, under `content`."""

    def __missing__(self, key: str) -> Any:
        if key != "content":
            raise KeyError(key)
        return self["text"]

    def get(self, key: str, default: Any = None) -> Any:
        """Return `dict.get` with the same alias."""
        try:
            return self[key]
        except KeyError:
            return default


class View:
    """Converts messages to mappings in the spellings that a template's source contains.

    Attributes:
        text: Applied to user texts.
        key: Applied to keys of mappings.
        mark_end: Put CONTINUE_HERE behind the last text.
        image_type: Type of image parts: "image" or "image_url".
        developer: Role of developer messages: "developer" or "system".
    """

    def __init__(self, source: str, text: Exchange, key: Exchange, mark_end: bool) -> None:
        self.text, self.key, self.mark_end = text, key, mark_end
        known = set(re.findall(r"""["'](image|image_url|developer)["']""", source))
        self.image_type = "image_url" if "image_url" in known and "image" not in known else "image"
        self.developer = "developer" if "developer" in known else "system"

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return every message as a mapping; with `mark_end` the last text ends in CONTINUE_HERE."""
        shown = [self._message(message) for message in messages]
        if self.mark_end:
            _mark(shown[-1])
        return shown

    def _message(self, message: Message) -> dict[str, Any]:
        shown: dict[str, Any] = {"role": self.developer if message.role == "developer" else message.role}
        if isinstance(message.content, str):
            shown["content"] = self.text(message.content)
        elif message.content is not None:
            shown["content"] = [self._part(part) for part in message.content]
        else:
            shown["content"] = None
        if message.tool_calls:
            calls = [dict(call) for call in message.tool_calls]
            shown["tool_calls"] = map_strings(calls, self.text, self.key)
        for name in ("tool_call_id", "name"):
            value = getattr(message, name)
            if value is not None:
                shown[name] = self.text(value)
        shown.update({name: map_strings(value, self.text, self.key) for name, value in message.extra.items()})
        return shown

    def _part(self, part: Part) -> dict[str, Any]:
        extra = {name: map_strings(value, self.text, self.key) for name, value in part.extra.items()}
        if isinstance(part, TextPart):
            return _Part(type="text", text=self.text(part.text), **extra)
        if isinstance(part, ImagePart):
            return {"type": self.image_type, **extra}
        return {"type": "thinking", "thinking": self._thinking(part), "closed": part.closed, **extra}

    def _thinking(self, part: ThinkPart) -> Any:
        if isinstance(part.thinking, str):
            return self.text(part.thinking)
        return [
            self._piece(piece) if isinstance(piece, dict) else self.text(piece) for piece in part.thinking
        ]

    def _piece(self, piece: dict[str, Any]) -> dict[str, Any]:
        masked = {name: map_strings(value, self.text, self.key) for name, value in piece.items()}
        return {**masked, "type": piece.get("type")}


def _mark(message: dict[str, Any]) -> None:
    """Put CONTINUE_HERE behind the message's last text, the end of the prompt."""
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + CONTINUE_HERE + " "
        return
    texts = [part for part in content or () if part["type"] == "text"]
    if not texts:
        raise PromptError("continue_final_message needs a text in the last message; it has none")
    texts[-1]["text"] += CONTINUE_HERE + " "
