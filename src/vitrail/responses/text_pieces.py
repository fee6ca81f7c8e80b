"""TextPieces: a growing list of ids as pieces of text that can be shown at once, never cutting a character."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"  # what decoding writes for bytes that are no whole character (yet)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how vocabularies with byte fallback write one byte
_CLEANED = 8  # characters that cleaning up spaces may still change at the end of a text
_MOST = 96  # ids that are decoded again and again while none of their ends is certain
_KEPT = range(16, 24)  # ids that stay then: more than one character's, and than cleaning reaches


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
        self._in_bytes = False  # whether the newest id that has a text is a byte-fallback id
        inner = getattr(tokenizer, "tokenizer", None)  # a processor's
        self._convert = getattr(
            tokenizer, "convert_ids_to_tokens", getattr(inner, "convert_ids_to_tokens", None)
        )
        skipped = getattr(tokenizer, "all_special_ids", getattr(inner, "all_special_ids", ()))
        self._skipped = frozenset(skipped if self.decode_kwargs.get("skip_special_tokens") else ())

    def add(self, ids: Sequence[int]) -> str:
        """Append ids and return the text that they make certain, perhaps none."""
        if not ids:
            return ""
        for id_ in ids:  # of control ids that follow each other one is as good as many
            if not (id_ in self._skipped and self._ids and self._ids[-1] in self._skipped):
                self._ids.append(id_)
        if self._ends_in_byte(ids):
            return ""
        text = self._decode(self._ids)
        if self._whole(text):
            piece, self._shown = text[self._shown :], len(text)
            self._forget()
            return piece
        certain = self._certain(text)
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        return piece + (self._cut_off(text) if len(self._ids) > _MOST else "")

    def end(self) -> str:
        """Return what was held back, and begin anew."""
        piece = self._decode(self._ids)[self._shown :] if self._ids else ""
        self._ids, self._cut, self._shown, self._in_bytes = [], 0, 0, False
        return piece

    def _cut_off(self, text: str) -> str:
        """Give out all but the last ids' text, where the ids can be decoded in two parts."""
        for kept in _KEPT:
            head = self._decode(self._ids[:-kept])
            if self._shown <= len(head) and head + self._decode(self._ids[-kept:]) == text:
                piece = head[self._shown :]
                self._ids, self._cut, self._shown = self._ids[-kept:], 0, 0
                return piece
        return ""

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
        return not (cleaned or text.endswith(REPLACEMENT))

    def _certain(self, text: str) -> int:
        certain = len(text.rstrip(REPLACEMENT))
        if self.decode_kwargs["clean_up_tokenization_spaces"]:
            certain = min(certain, len(text) - _CLEANED)
        return max(certain, self._shown)

    def _ends_in_byte(self, ids: Sequence[int]) -> bool:
        """Whether the newest id that has a text is a byte-fallback id; skipped control ids do not end a run."""
        if self._convert is None:
            return False
        for id_ in reversed(ids):
            in_bytes = bool(_BYTE.fullmatch(str(self._convert(int(id_)))))
            if in_bytes or self._decode([id_]):
                self._in_bytes = in_bytes
                break
        return self._in_bytes
