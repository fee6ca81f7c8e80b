"""TextPieces: a growing list of ids as pieces of text that can be shown at once, never cutting a character."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"  # what decoding writes for bytes that are no whole character (yet)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how vocabularies with byte fallback write one byte
_CLEANED = 8  # characters that cleaning up spaces may still change at the end of a text


class Detokenizer(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Ids → text."""


class TextPieces:
    """Cuts a growing list of ids into pieces of text; together they are the text of all ids.

    A piece never ends inside a character: what the next id may still change is held back. Those are bytes
    that are no whole character yet, a run of byte-fallback ids (it is decoded as a whole), and, when
    `clean_up_tokenization_spaces` is asked for, the last few characters.
    """

    def __init__(self, tokenizer: Detokenizer, **decode_kwargs: Any) -> None:
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
