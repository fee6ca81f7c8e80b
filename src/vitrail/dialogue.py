"""Dialogue: a conversation with a model in which every position is computed once. Files: cli/transcript.py.

It joins processor and model as pipelines.py does, and keeps the cache and the image features between turns.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from vitrail.arguments import check, check_methods, checked_except
from vitrail.errors import InputError, PromptError
from vitrail.generate.reuse import Continuation, PromptImage, PromptMemory
from vitrail.images.request import image_request
from vitrail.ops.in_use import alone
from vitrail.processor.prepared import PreparedImage, lay_out
from vitrail.processor.processor import PixtralProcessor
from vitrail.prompts.messages import ImagePart, Message, Part, normalize
from vitrail.responses.events import Piece
from vitrail.responses.reply import PromptSize, Reply, renamed
from vitrail.responses.streamer import ResponseStream

LONGEST = 512  # new tokens, where neither the caller nor generation_config.json sets a number
# Arguments of generate() that the conversation sets.
_OWN = {
    "attention_mask", "cache", "ids", "image_sizes", "images", "input_ids", "inputs", "inputs_embeds", "past_key_values",
    "pixel_values", "return_dict_in_generate",
}  # fmt: skip

Raw = dict[str, Any]


@dataclass(frozen=True)
class Attachment:
    """A file opened for a coming message. raw: its content part; images: prepared, a PDF's pages."""

    raw: Raw
    images: tuple[ImagePart, ...]

    @property
    def tokens(self) -> int:
        """Number of image tokens."""
        return sum(part.source.tokens for part in self.images)


@dataclass(frozen=True)
class _Entry:
    """A message as given, and as parsed, with prepared images."""

    raw: Raw
    message: Message


@checked_except("__init__.messages", "load.messages")
class Dialogue:
    """A conversation, turn by turn, with a prefix cache.

    Every prompt is built from all messages, so it equals the prompt of a new conversation; its cached prefix, answers
    included, is not computed again. An image goes through the image processor and the vision tower once.

    Args:
        model: a loaded model of Vitrail.
        processor: a PixtralProcessor, or the tokenizer of a text-only checkpoint.
        messages: the messages so far, in any form that apply_chat_template accepts.
        max_image_tokens: limit of tokens per image.
        pages: function that opens files in messages, such as `load_pages` with other limits.
        prompt_options: options of apply_chat_template: tools, format, chat_template, …
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        messages: Sequence[Raw] = (),
        *,
        max_image_tokens: int | None = None,
        pages: Callable[[Any], list[Any]] | None = None,
        **prompt_options: Any,
    ) -> None:
        check_methods("model", model, "step", "embed")
        check_methods("processor", processor, "apply_chat_template", "decode")
        self.model, self.processor = model, processor
        self._options, self._pages = prompt_options, pages
        self._image_options = {} if max_image_tokens is None else {"max_image_tokens": max_image_tokens}
        self._memory = PromptMemory(model)
        self._entries: list[_Entry] = []
        self.load(messages)

    @property
    def messages(self) -> list[Raw]:
        """The conversation as given, answers included, for apply_chat_template."""
        return [dict(entry.raw) for entry in self._entries]

    @property
    def cached(self) -> int:
        """Positions in the cache."""
        return self._memory.length

    pictures_encoded = renamed("images_encoded")

    @property
    def images_encoded(self) -> int:
        """Number of images encoded by the vision tower so far."""
        return self._memory.encoded

    @property
    def system(self) -> str | None:
        """The system prompt, if it is a text. Setting it keeps all other messages; None removes it."""
        first = self._entries[0].raw if self._entries else {}
        content = first.get("content") if first.get("role") == "system" else None
        return content if isinstance(content, str) else None

    @system.setter
    def system(self, text: str | None) -> None:
        with self._alone():
            held = bool(self._entries) and self._entries[0].raw.get("role") == "system"
            first = [] if text is None else self._read([{"role": "system", "content": text}])
            self._entries = [*first, *self._entries[held:]]

    def load(self, messages: Sequence[Raw]) -> None:
        """Replace the messages. Raises PromptError or ImageError, and then changes nothing."""
        with self._alone():
            self._entries = self._read(messages)

    def clear(self) -> None:
        """Remove all messages but the system prompt."""
        with self._alone():
            self._entries = [entry for entry in self._entries[:1] if entry.raw.get("role") == "system"]
            self._memory.forget()

    def attach(self, part: Raw) -> Attachment:
        """Open an image or a file for the content of a coming message. Raises as `load`."""
        (entry,) = self._read([{"role": "user", "content": [part]}])
        return Attachment(part, entry.message.images)

    def prompt_ids(self) -> list[int]:
        """Return the ids of the conversation's present prompt."""
        return lay_out(self.processor, [entry.message for entry in self._entries], **self._options)[0]

    def ask(
        self,
        content: str | Sequence[Raw | Attachment],
        *,
        on_event: Callable[[Piece], None] | None = None,
        on_prompt: Callable[[PromptSize], None] | None = None,
        stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Reply:
        """Append a user's message and the model's answer to it.

        An error or an empty answer leaves the conversation as before. Conversations of one model may run in several
        threads, each in one thread at a time.

        Args:
            content: a text, or parts: texts, images and attachments. A PDF counts as its pages.
            on_event: called with each piece of the answer.
            on_prompt: called with the prompt's size before prefill.
            stop: called after every id; True ends the answer there and keeps it.
            progress: called with (positions done, all positions) during prefill.
            options: of generate(). max_new_tokens is limited to the rest of the context.

        Raises:
            PromptError, ImageError: content that cannot be used. InputError: an unusable option, or another call on
                this conversation in progress.
        """
        calls = _Callbacks(_renamed(on_event, options), on_prompt, stop, progress)
        began = time.perf_counter()
        with self._alone():
            question = self._read([{"role": "user", "content": content}])
            return self._answer([*self._entries, *question], began, calls, options)

    def retry(
        self,
        *,
        on_event: Callable[[Piece], None] | None = None,
        on_prompt: Callable[[PromptSize], None] | None = None,
        stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Reply:
        """Generate the last answer again and replace it. Arguments as `ask`."""
        calls = _Callbacks(_renamed(on_event, options), on_prompt, stop, progress)
        with self._alone():
            asked = [number for number, entry in enumerate(self._entries) if entry.raw.get("role") == "user"]
            if not asked:
                raise InputError("nothing was asked yet that could be answered again")
            return self._answer(self._entries[: asked[-1] + 1], time.perf_counter(), calls, options)

    def _alone(self) -> AbstractContextManager[None]:
        """Return a context of exclusive use: answers of two threads would be mixed."""
        return alone(self, "this Dialogue")

    def _answer(
        self, entries: list[_Entry], began: float, calls: "_Callbacks", options: dict[str, Any]
    ) -> Reply:
        ids, images = lay_out(self.processor, [entry.message for entry in entries], **self._options)
        costs = tuple(image.tokens for image in images)
        if calls.on_prompt is not None:
            calls.on_prompt(PromptSize(len(ids), costs, tuple(image.size for image in images)))
        if "streamer" in options:
            raise InputError("ask() takes no streamer=; on_event= is called with each piece of the answer.")
        if taken := sorted(_OWN.intersection(options)):
            raise InputError(
                f"ask() takes no {', '.join(taken)}: the conversation sets them; images go into the message's content."
            )
        stream = ResponseStream(self.processor, calls.on_event)
        prepared = time.perf_counter()
        if (stop := calls.stop) is not None:
            options["stopping_criteria"] = lambda *_: stop()
        options["max_new_tokens"] = self._longest(len(ids), options.get("max_new_tokens"))
        shown = [PromptImage(p.key, p.image_tokens, p.pixels) for p in images]
        found = self._memory.go_on(ids, shown, streamer=stream, progress=calls.progress, **options)
        done = time.perf_counter()
        response = stream.response
        reply = Reply(
            response=response,
            prompt_tokens=len(ids),
            reused=found.reused,
            computed=found.computed,
            image_tokens=costs,
            images_encoded=found.encoded,
            completion_tokens=len(found.ids),
            stopped_by=_stopped_by(found),
            seconds={
                "prepare": prepared - began,
                "first_token": (stream.first or done) - prepared,
                "total": done - began,
            },
        )
        if not reply.empty:
            self._entries = [*entries, *self._read([response.as_message()])]
        return reply

    def _longest(self, prompt: int, wanted: int | None) -> int:
        """Return the limit of new ids: the requested number, limited to the rest of the context."""
        check("ask", "max_new_tokens", wanted, int | None)
        if wanted is not None and wanted < 1:
            raise InputError(f"max_new_tokens is at least 1; got {wanted}.")
        longest = int(wanted or self.model.generation_config.max_new_tokens or LONGEST)
        limit = self.model.max_model_len
        # Where not even one fits, generate() raises with both numbers.
        return longest if limit is None else max(1, min(longest, limit - prompt + 1))

    @image_request()
    def _read(self, messages: Sequence[Raw]) -> list[_Entry]:
        """Return messages with opened and prepared images."""
        if not isinstance(messages, Sequence) or not all(
            isinstance(message, Mapping) for message in messages
        ):
            raise PromptError(
                "messages: expected a list of mappings with 'role' and 'content'; ask() takes texts"
            )
        spread = [{**message, "content": _spread(message.get("content"))} for message in messages]
        read = normalize(spread, self._pages) if spread else []
        entries = []
        for raw, message in zip(messages, read, strict=True):
            if message.images:
                parts = (part for part in message.content or () if not isinstance(part, str))
                message = replace(message, content=tuple(self._prepare(part) for part in parts))
            entries.append(_Entry(_as_given(raw), message))
        return entries

    def _prepare(self, part: Part) -> Part:
        if not isinstance(part, ImagePart):
            return part
        if isinstance(part.source, PreparedImage):
            return part
        if not isinstance(self.processor, PixtralProcessor):
            raise PromptError("this checkpoint reads text only; it cannot be shown images")
        if part.source is None:
            raise PromptError("an image has no source; a conversation's images stand in its messages")
        return ImagePart(PreparedImage(self.processor, part.source, self._image_options), part.extra)


def _spread(content: Any) -> Any:
    """Return a message's content with the images of attachments in their place."""
    if not isinstance(content, (list, tuple)):
        return content
    parts: list[Any] = []
    for part in content:
        parts.extend(part.images if isinstance(part, Attachment) else [part])
    return parts


def _as_given(raw: Raw) -> Raw:
    """Return the message with the original parts of its attachments."""
    content = raw.get("content")
    if not isinstance(content, (list, tuple)):
        return raw
    return {**raw, "content": [part.raw if isinstance(part, Attachment) else part for part in content]}


@dataclass(frozen=True)
class _Callbacks:
    """Callbacks of `ask` and `retry`."""

    on_event: Callable[[Piece], None]
    on_prompt: Callable[[PromptSize], None] | None
    stop: Callable[[], bool] | None
    progress: Callable[[int, int], None] | None


def _renamed(on_event: Callable[[Piece], None] | None, options: dict[str, Any]) -> Callable[[Piece], None]:
    """Return `on_event`, or the value of its name in 0.1.0."""
    if "hear" in options:
        warnings.warn("hear= is called on_event= now.", DeprecationWarning, stacklevel=4)
        on_event = options.pop("hear") or on_event
    return on_event or (lambda _: None)


def _stopped_by(found: Continuation) -> str:
    return {"length": "length", "criteria": "interrupted"}.get(found.reason, "stop")


def __getattr__(name: str) -> Any:
    """Return Reply for `Turn`, its name in version 0.1.0, until the next minor version."""
    if name != "Turn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "vitrail.dialogue.Turn is called vitrail.Reply now; use that name.", DeprecationWarning, stacklevel=2
    )
    globals()[name] = Reply  # later look-ups find it, so that the warning comes once
    return Reply
