"""TextPieces: incremental detokenization, in pieces that end between characters."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"  # decoded from bytes that are no whole character (yet)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte-fallback token
_CLEANED = 8  # last characters of a text that clean_up_tokenization_spaces may still change
_MOST = 96  # maximum number of ids that are decoded again with each new one
_KEPT = range(16, 24)  # ids kept beyond it: more than those of one character or of _CLEANED characters


class Detokenizer(Protocol):
    """Tokenizer interface: ids to text."""

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Decode ids to text."""


class TextPieces:
    """Decodes a growing list of ids in pieces that join to the text of all ids.

    Text that the next id may change is held back: bytes that are no whole character yet, a run of byte-fallback ids
    (decoded as a whole), and with `clean_up_tokenization_spaces` the last few characters.

    Args:
        tokenizer: The tokenizer, or a processor.
        **decode_kwargs: Keywords of its `decode`; `clean_up_tokenization_spaces` is False by default.
    """

    def __init__(self, tokenizer: Detokenizer, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.decode_kwargs = {"clean_up_tokenization_spaces": False, **decode_kwargs}
        self._ids: list[int] = []  # ids since the last but one safe cut, the context for decoding new ones
        self._cut = 0  # index in _ids of the last safe cut
        self._shown = 0  # characters of the text of _ids that were returned
        self._in_bytes = False  # whether the newest id with a text is a byte-fallback id
        inner = getattr(tokenizer, "tokenizer", None)  # a processor's
        self._convert = getattr(
            tokenizer, "convert_ids_to_tokens", getattr(inner, "convert_ids_to_tokens", None)
        )
        skipped = getattr(tokenizer, "all_special_ids", getattr(inner, "all_special_ids", ()))
        self._skipped = frozenset(skipped if self.decode_kwargs.get("skip_special_tokens") else ())

    def add(self, ids: Sequence[int]) -> str:
        """Append ids and return the text that is certain now, possibly ""."""
        if not ids:
            return ""
        for id_ in ids:  # one id of a run of skipped control ids is enough
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
        """Return the held-back text and reset."""
        piece = self._decode(self._ids)[self._shown :] if self._ids else ""
        self._ids, self._cut, self._shown, self._in_bytes = [], 0, 0, False
        return piece

    def _cut_off(self, text: str) -> str:
        """Return all but the last ids' text, if the ids can be decoded in two parts."""
        for kept in _KEPT:
            head = self._decode(self._ids[:-kept])
            if self._shown <= len(head) and head + self._decode(self._ids[-kept:]) == text:
                piece = head[self._shown :]
                self._ids, self._cut, self._shown = self._ids[-kept:], 0, 0
                return piece
        return ""

    def _forget(self) -> None:
        """Keep only the ids since the last cut, as context for the next ones, if they have a text."""
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
        """Return whether the newest id with a text is a byte-fallback id; skipped control ids do not end a run."""
        if self._convert is None:
            return False
        for id_ in reversed(ids):
            in_bytes = bool(_BYTE.fullmatch(str(self._convert(int(id_)))))
            if in_bytes or self._decode([id_]):
                self._in_bytes = in_bytes
                break
        return self._in_bytes
