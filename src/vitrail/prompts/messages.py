"""Message: one form for all spellings of a conversation. Opens PDFs, but no images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

from vitrail.arguments import short
from vitrail.errors import PromptError

ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_FILE_TYPES = ("file", "input_file", "document_url")
_SOURCE_KEYS = ("image", "url", "path", "base64", "image_url")
_FILE_KEYS = ("path", "url", "file_url", "file_data", "document_url")
_MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")
_SEEN_PARTS = "text, image, image_url, file and thinking"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A run of text inside a message."""

    text: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image inside a message.

    Attributes:
        source: Argument of `load_image`; None for an image that is passed separately.
        is_file: Given as a file: an image, or a PDF, which stands for all its pages, whatever its name.
    """

    source: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    is_file: bool = False


@dataclass(frozen=True, slots=True)
class ThinkPart:
    """A model's reasoning inside a message: a text, or a list of text parts for templates that need one."""

    thinking: Any
    closed: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


Part: TypeAlias = TextPart | ImagePart | ThinkPart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `extra`: keys that only some templates read, such as `reasoning_content`."""

    role: str
    content: str | tuple[Part, ...] | None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The message's images, in order."""
        parts = self.content if isinstance(self.content, tuple) else ()
        return tuple(part for part in parts if isinstance(part, ImagePart))


def normalize(conversation: Any, pages: Callable[[Any], list[Any]] | None = None) -> list[Message]:
    """Convert one conversation in any spelling to messages, with each PDF replaced by one image a page.

    Args:
        conversation: A list of messages, one message, a string (one user message) or an object with `.messages`.
            Messages and parts are mappings in Hugging Face's or OpenAI's spelling, or mistral-common's objects.
        pages: Opens the source of a PDF as a list of pages; None: `load_pages` with its default limits.

    Raises:
        PromptError: The conversation is malformed; with the place of the fault.
        ImageError: A PDF cannot be opened.
    """
    if hasattr(conversation, "messages"):
        conversation = conversation.messages
    if isinstance(conversation, str):
        conversation = [{"role": "user", "content": conversation}]
    elif _is_message(conversation):
        conversation = [conversation]
    if not isinstance(conversation, Sequence):
        raise PromptError(f"messages: expected a list of messages, got {type(conversation).__name__}")
    if not conversation:
        raise PromptError("messages: expected at least one message, got an empty list")
    return [
        _open_files(
            message if isinstance(message, Message) else _message(message, f"messages[{index}]"), pages
        )
        for index, message in enumerate(conversation)
    ]


def _open_files(message: Message, pages: Callable[[Any], list[Any]] | None) -> Message:
    """Return the message with each PDF replaced by its pages."""
    from vitrail.images.pdf import load_pages, names_pdf

    if not any(part.is_file or names_pdf(part.source) for part in message.images):
        return message
    opened: list[Part] = []
    for part in message.content or ():
        if isinstance(part, ImagePart) and (part.is_file or names_pdf(part.source)):
            opened.extend(ImagePart(page, part.extra) for page in (pages or load_pages)(part.source))
        elif not isinstance(part, str):
            opened.append(part)
    return replace(message, content=tuple(opened))


def normalize_batch(conversations: Any) -> tuple[list[list[Message]], bool]:
    """Convert one conversation or a list of them to lists of messages, as `normalize` does.

    Returns:
        The conversations, and whether a list of them was given.
    """
    batched = (
        isinstance(conversations, (list, tuple))
        and len(conversations) > 0
        and (isinstance(conversations[0], (list, tuple)) or hasattr(conversations[0], "messages"))
    )
    if not batched:
        return [normalize(conversations)], False
    normalized = []
    for index, conversation in enumerate(conversations):
        try:
            normalized.append(normalize(conversation))
        except PromptError as error:
            raise PromptError(f"conversation {index}: {error}") from error
    return normalized, True


def images(messages: Sequence[Message]) -> list[ImagePart]:
    """Return every image of a conversation, in reading order."""
    return [part for message in messages for part in message.images]


def _message(raw: Any, place: str) -> Message:
    if not _is_message(raw):
        raise PromptError(f"{place}: expected a mapping with 'role' and 'content', got {_describe(raw)}")
    role = _plain(_read(raw, "role"))
    if role not in ROLES:
        raise PromptError(f"{place}.role: expected one of {', '.join(ROLES)}, got {short(role)}")
    calls = _read(raw, "tool_calls")
    may_be_empty = role == "assistant" and (calls is not None or _thinks(raw))
    if isinstance(raw, Mapping):
        extra = {key: value for key, value in raw.items() if key not in _MESSAGE_KEYS}
    else:
        read = {key: _read(raw, key) for key in ("prefix", "weight")}
        extra = {key: value for key, value in read.items() if value is not None and value is not False}
    return Message(
        role=role,
        content=_content(_read(raw, "content"), f"{place}.content", may_be_empty),
        tool_calls=_tool_calls(calls, f"{place}.tool_calls"),
        tool_call_id=_optional_text(_read(raw, "tool_call_id"), f"{place}.tool_call_id"),
        name=_optional_text(_read(raw, "name"), f"{place}.name"),
        extra=extra,
    )


def _content(raw: Any, place: str, may_be_empty: bool) -> str | tuple[Part, ...] | None:
    if raw is None:
        if may_be_empty:
            return None
        raise PromptError(f"{place}: expected a text or a list of parts, got nothing")
    if isinstance(raw, str):
        return str(raw)
    if not isinstance(raw, (list, tuple)):
        raise PromptError(f"{place}: expected a text or a list of parts, got {_describe(raw)}")
    return tuple(
        part if isinstance(part, (TextPart, ImagePart, ThinkPart)) else _part(part, f"{place}[{index}]")
        for index, part in enumerate(raw)
    )


def _part(raw: Any, place: str) -> Part:
    if isinstance(raw, str):
        return TextPart(raw)
    kind = _plain(_read(raw, "type"))
    if kind is None:
        raise PromptError(f"{place}: expected a part with a 'type' ({_SEEN_PARTS}), got {_describe(raw)}")
    if kind in _TEXT_TYPES:
        return _text_part(raw, place)
    if kind in _IMAGE_TYPES:
        return _image_part(raw, kind, place)
    if kind in _FILE_TYPES:
        return _file_part(raw, place)
    if kind == "thinking":
        closed = _read(raw, "closed") is not False
        return ThinkPart(_thinking(_read(raw, "thinking"), place), closed, _rest(raw, "thinking", "closed"))
    raise PromptError(f"{place}.type: Vitrail reads parts of type {_SEEN_PARTS}; got {short(kind)}")


def _text_part(raw: Any, place: str) -> TextPart:
    given = {key: _read(raw, key) for key in ("text", "content") if _read(raw, key) is not None}
    if not given:
        raise PromptError(f"{place}: a text part needs its text under 'text' (or 'content')")
    texts = set(map(str, given.values()))
    if len(texts) > 1:
        raise PromptError(f"{place}: 'text' and 'content' say different things; give one of them")
    for key, text in given.items():
        if not isinstance(text, str):
            raise PromptError(f"{place}.{key}: expected a text, got {_describe(text)}")
    return TextPart(texts.pop(), _rest(raw, "text", "content"))


def _image_part(raw: Any, kind: str, place: str) -> ImagePart:
    given = {key: _read(raw, key) for key in _SOURCE_KEYS if _read(raw, key) is not None}
    if len(given) > 1:
        raise PromptError(f"{place}: one image has several sources ({', '.join(given)}); give one of them")
    if not given:
        if kind != "image":
            raise PromptError(f"{place}: a part of type {kind!r} needs 'image_url'")
        return ImagePart(None, _rest(raw, *_SOURCE_KEYS))
    key, source = next(iter(given.items()))
    if key == "image_url" and not isinstance(source, str):
        source = _read(source, "url")
        if not isinstance(source, str):
            raise PromptError(f"{place}.image_url: expected a text or {{'url': text}}")
    if key == "base64":
        if not isinstance(source, str):
            raise PromptError(f"{place}.base64: expected a text, got {_describe(source)}")
        source = source if source.startswith("data:") else f"data:image/png;base64,{source}"
    return ImagePart(source, _rest(raw, *_SOURCE_KEYS))


def _file_part(raw: Any, place: str) -> ImagePart:
    """Read a file in OpenAI's spellings ({"file": {"file_data": …}}, {"file_url": …}), Mistral's, or by path or URL."""
    inner = _read(raw, "file")
    fields = raw if inner is None else inner
    given = {key: _read(fields, key) for key in _FILE_KEYS if _read(fields, key) is not None}
    if len(given) != 1:
        had = f"got {', '.join(given)}" if given else "a file_id names nothing here"
        raise PromptError(f"{place}: a file needs one of {', '.join(_FILE_KEYS)}; {had}")
    key, source = next(iter(given.items()))
    if key == "document_url" and not isinstance(source, str):
        source = _read(source, "url")
    if key != "path" and not isinstance(source, str):
        raise PromptError(f"{place}.{key}: expected a text, got {_describe(source)}")
    if key == "file_data" and not source.startswith("data:"):
        source = f"data:application/pdf;base64,{source}"
    return ImagePart(source, _rest(raw, "file", "document_name", *_FILE_KEYS), is_file=True)


def _thinking(raw: Any, place: str) -> Any:
    if isinstance(raw, str):
        return raw
    if isinstance(raw, (list, tuple)):
        return [part if isinstance(part, str) else dict(_fields(part)) for part in raw]
    raise PromptError(f"{place}.thinking: expected a text or a list of parts, got {_describe(raw)}")


def _tool_calls(raw: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    if raw is None:
        return ()
    if not isinstance(raw, (list, tuple)):
        raise PromptError(f"{place}: expected a list of calls, got {_describe(raw)}")
    calls = []
    for index, call in enumerate(raw):
        fields = dict(_fields(call))
        function = fields.get("function", fields)
        if not isinstance(_read(function, "name"), str):
            raise PromptError(f"{place}[{index}]: expected {{'function': {{'name': …, 'arguments': …}}}}")
        if "function" in fields:
            fields["function"] = dict(_fields(function))
        calls.append(fields)
    return tuple(calls)


def _thinks(raw: Any) -> bool:
    return any(_read(raw, key) is not None for key in ("reasoning", "reasoning_content"))


def _is_message(raw: Any) -> bool:
    if isinstance(raw, (Message, str, list, tuple)):
        return isinstance(raw, Message)
    return "role" in raw if isinstance(raw, Mapping) else hasattr(raw, "role")


def _read(raw: Any, key: str) -> Any:
    return raw.get(key) if isinstance(raw, Mapping) else getattr(raw, key, None)


def _fields(raw: Any) -> Mapping[str, Any]:
    """Return the fields of a mapping or of a pydantic model (mistral-common's objects)."""
    if isinstance(raw, Mapping):
        return raw
    dump = getattr(raw, "model_dump", None)
    if not callable(dump):
        raise PromptError(f"expected a mapping, got {_describe(raw)}")
    return dict(dump())


def _rest(raw: Any, *known: str) -> dict[str, Any]:
    return {k: v for k, v in raw.items() if k not in (*known, "type")} if isinstance(raw, Mapping) else {}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _optional_text(value: Any, place: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise PromptError(f"{place}: expected a text, got {_describe(value)}")


def _describe(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '…'}"
