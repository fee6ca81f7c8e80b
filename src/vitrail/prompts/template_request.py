"""TemplateRequest: all inputs of one rendering of a chat template, and their serialisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NoReturn

from vitrail.errors import PromptError
from vitrail.prompts.messages import ImagePart, Message, Part, TextPart, ThinkPart

MAX_REQUEST = 1 << 26  # bytes of a conversation with its tools and documents, without its images
_TAG = "\0"  # the only key of a mapping that represents a value without a JSON type
_TOO_DEEP = "the messages, tools or documents are nested too deeply"


@dataclass(frozen=True, slots=True)
class TemplateRequest:
    """Arguments of one rendering: those of `vitrail.prompts.template.render`, and `moment`, the time of strftime_now."""

    source: str
    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None
    documents: list[dict[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    controls: tuple[str, ...]
    special_tokens: Mapping[str, Any]
    variables: Mapping[str, Any]
    moment: datetime
    find_answers: bool = False

    def to_bytes(self) -> bytes:
        """Serialise the request as JSON.

        Raises:
            PromptError: The request is too large, nested too deeply or has an integer of too many digits.
        """
        try:
            fields = {name: _plain(getattr(self, name)) for name in self.__slots__ if name != "messages"}
            fields["messages"] = [_plain_message(message) for message in self.messages]
            written = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except RecursionError as error:
            raise PromptError(_TOO_DEEP) from error
        except ValueError as error:  # an integer with more digits than Python converts to text
            raise PromptError(
                f"the messages, tools or variables cannot be shown to a chat template: {error}"
            ) from error
        if len(written) > MAX_REQUEST:
            raise PromptError(
                f"the conversation has {len(written):,} bytes; at most {MAX_REQUEST:,} are shown to a chat template"
            )
        return written

    @classmethod
    def from_bytes(cls, written: bytes) -> TemplateRequest:
        """Read the bytes of `to_bytes`.

        Raises:
            PromptError: The request is nested too deeply.
        """
        try:
            fields = json.loads(written.decode("utf-8", "surrogatepass"), object_hook=_revived)
        except RecursionError as error:
            raise PromptError(_TOO_DEEP) from error
        fields["messages"] = tuple(_message(entry) for entry in fields["messages"])
        fields["controls"] = tuple(fields["controls"])
        return cls(**fields)


class _Unsent:
    """Placeholder for a value that is not serialised (an image, a tensor); any use by the template raises PromptError."""

    def __init__(self, kind: str) -> None:
        self.__dict__["kind"] = kind

    def _refuse(self, *_: Any) -> NoReturn:
        raise PromptError(
            f"the chat template reads a value of type {self.__dict__['kind']}; give texts, numbers, dates, lists or dicts"
        )

    __str__ = __repr__ = __iter__ = __len__ = __bool__ = __call__ = __getitem__ = __hash__ = _refuse
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __add__ = __radd__ = __contains__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; tagged mappings represent dates, other keys and other types."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != _TAG for key in value):
            return {str.__str__(key): _plain(item) for key, item in value.items()}
        return {_TAG: ["dict", [[_plain(key), _plain(item)] for key, item in value.items()]]}
    if isinstance(value, (date, datetime)):
        return {_TAG: ["datetime" if isinstance(value, datetime) else "date", value.isoformat()]}
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return _plain(value.item())  # a NumPy or PyTorch scalar
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return _plain(dump())
    return {_TAG: ["other", type(value).__name__]}


def _revived(found: dict[str, Any]) -> Any:
    if _TAG not in found:
        return found
    kind, value = found[_TAG]
    if kind == "dict":
        return {tuple(key) if isinstance(key, list) else key: item for key, item in value}
    if kind == "date":
        return date.fromisoformat(value)
    if kind == "datetime":
        return datetime.fromisoformat(value)
    return _Unsent(value)


def _plain_message(message: Message) -> dict[str, Any]:
    content = message.content
    return {
        "role": message.role,
        "content": _plain(content)
        if content is None or isinstance(content, str)
        else list(map(_plain_part, content)),
        "tool_calls": _plain(message.tool_calls),
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "extra": _plain(message.extra),
    }


def _plain_part(part: Part) -> list[Any]:
    if isinstance(part, TextPart):
        return ["text", _plain(part.text), _plain(part.extra)]
    if isinstance(part, ImagePart):  # without its source, which templates do not use
        return ["image", _plain(part.extra)]
    return ["thinking", _plain(part.thinking), part.closed, _plain(part.extra)]


def _message(fields: dict[str, Any]) -> Message:
    content = fields.pop("content")
    calls = tuple(fields.pop("tool_calls"))
    return Message(
        content=tuple(map(_part, content)) if isinstance(content, list) else content,
        tool_calls=calls,
        **fields,
    )


def _part(written: list[Any]) -> Part:
    kind, *fields = written
    if kind == "text":
        return TextPart(*fields)
    return ThinkPart(*fields) if kind == "thinking" else ImagePart(None, *fields)
