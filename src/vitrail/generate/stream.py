"""Ids that arrive one by one → pieces of text that can be shown at once. The ids are drawn elsewhere."""

import queue
import re
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitrail.errors import InputError
from vitrail.generate.stopping import REPLACEMENT, Decoder

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how vocabularies with byte fallback write one byte
_CLEANED = 8  # characters that cleaning up spaces may still change at the end of a text


class TextPieces:
    """Cuts a growing list of ids into pieces of text; together they are the text of all ids.

    A piece never ends inside a character: what the next id may still change is held back. Those are bytes
    that are no whole character yet, a run of byte-fallback ids (it is decoded as a whole), and, when
    `clean_up_tokenization_spaces` is asked for, the last few characters.
    """

    def __init__(self, tokenizer: Decoder, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.decode_kwargs = {"clean_up_tokenization_spaces": False, **decode_kwargs}
        self._ids: list[int] = []  # from the last two safe cuts on: enough context to decode what follows
        self._cut = 0  # where the newer of these cuts lies in _ids
        self._shown = 0  # characters of their text that were given out

    def add(self, ids: Sequence[int]) -> str:
        """Append ids and return the text that they make certain, perhaps none."""
        if not ids:
            return ""
        self._ids.extend(ids)
        text = self._decode(self._ids)
        certain = len(text) if self._whole(text) else self._certain(text)
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if certain == len(text):
            self._forget()
        return piece

    def end(self) -> str:
        """Return what was held back, and begin anew."""
        piece = self._decode(self._ids)[self._shown :] if self._ids else ""
        self._ids, self._cut, self._shown = [], 0, 0
        return piece

    def _forget(self) -> None:
        """Keep only the ids since the last cut, as context of the next ones, if they have any text."""
        recent = len(self._decode(self._ids[self._cut :]))
        if recent:
            self._ids = self._ids[self._cut :]
            self._shown = recent
        self._cut = len(self._ids)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, **self.decode_kwargs)

    def _whole(self, text: str) -> bool:
        cleaned = self.decode_kwargs["clean_up_tokenization_spaces"]
        return not (cleaned or text.endswith(REPLACEMENT) or self._ends_in_byte())

    def _certain(self, text: str) -> int:
        if self._ends_in_byte():
            return self._shown
        certain = len(text.rstrip(REPLACEMENT))
        if self.decode_kwargs["clean_up_tokenization_spaces"]:
            certain = min(certain, len(text) - _CLEANED)
        return max(certain, self._shown)

    def _ends_in_byte(self) -> bool:
        """Whether the newest id that has a text is a byte-fallback id; skipped control ids do not end a run."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # a processor's
        convert = getattr(
            self.tokenizer, "convert_ids_to_tokens", getattr(inner, "convert_ids_to_tokens", None)
        )
        if convert is None:
            return False
        newest = next((id_ for id_ in reversed(self._ids) if self._decode([id_])), self._ids[-1])
        return bool(_BYTE.fullmatch(str(convert(int(newest)))))


class TextStreamer:
    """Writes text to the standard output as generate() makes it; hand it over as `streamer=`.

    Subclasses overwrite `on_finalized_text`. One row at a time.

    Args:
        tokenizer: anything with `decode(ids, **kwargs)`: a tokenizer or a processor.
        skip_prompt: leave out the prompt, which generate() hands over first.
        decode_kwargs: for `decode`, for instance skip_special_tokens=True.
    """

    def __init__(self, tokenizer: Decoder, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self._pieces = TextPieces(tokenizer, **decode_kwargs)

    def put(self, value: Tensor) -> None:
        """Take the prompt (1, T) or the next ids (1,).

        Raises:
            InputError: more than one row.
        """
        if (value.dim() > 1 and value.shape[0] > 1) or value.dim() > 2:
            raise InputError(f"a text streamer shows one row, got ids of the shape {tuple(value.shape)}.")
        prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if prompt and self.skip_prompt:
            return
        self.on_finalized_text(self._pieces.add(value.flatten().tolist()))

    def end(self) -> None:
        """Show what was held back; the next `put` begins a new text."""
        self.next_tokens_are_prompt = True
        self.on_finalized_text(self._pieces.end(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece to the standard output, and a line feed after the last one."""
        sys.stdout.write(text + ("\n" if stream_end else ""))
        sys.stdout.flush()


class TextIteratorStreamer(TextStreamer):
    """An iterator of text pieces, for a thread beside the one that runs generate().

    Args:
        timeout: seconds to wait for a piece, after which `queue.Empty` is raised; None waits for ever. An
            error in generate() ends the iteration with that error: nobody waits for what never comes.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: queue.Queue[str | BaseException | None] = queue.Queue()
        self.stop_signal = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put a piece, and after the last one the signal to stop, into the queue."""
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(self.stop_signal)

    def fail(self, error: BaseException) -> None:
        """End the iteration with an error; generate() calls it when it cannot go on."""
        self.text_queue.put(error)

    def __iter__(self) -> "TextIteratorStreamer":
        return self

    def __next__(self) -> str:
        value = self.text_queue.get(timeout=self.timeout)
        if isinstance(value, str):
            return value
        if value is None:
            raise StopIteration
        raise value
