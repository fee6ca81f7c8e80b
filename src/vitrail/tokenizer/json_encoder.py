"""JsonEncoder: pieces → ids with a tokenizer.json; control tokens by name only, never from text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vitrail.errors import PromptError
from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.encode import CARRIER
from vitrail.prompts.builtin.versions import find_format
from vitrail.tokenizer.safety import no_panic

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class JsonEncoder:
    """Encodes with a copy of `backend`, a `tokenizers.Tokenizer`, in which special tokens are ordinary text."""

    def __init__(self, backend: Tokenizer, named: dict[str, str] | None = None) -> None:
        """Copy the backend. named: other spellings of the formats' control tokens, such as `<s>`."""
        from tokenizers import Tokenizer as Backend

        added = backend.get_added_tokens_decoder()
        self._controls = {token.content: index for index, token in added.items() if token.special}
        self._controls |= {
            name: self._controls[token] for name, token in (named or {}).items() if token in self._controls
        }
        self._words = {token.content: index for index, token in added.items() if not token.special}
        with no_panic("this tokenizer cannot be copied"):
            self._copy = Backend.from_str(backend.to_str())
        self._copy.encode_special_tokens = True
        self._copy.no_truncation()
        self._copy.no_padding()
        self._unknown = self._unknown_id()
        self._forbidden = set(self._controls.values()) - {self._unknown}
        self._cut = _alternatives(self._words)
        self._carrier = len(self._raw(CARRIER))
        with no_panic("a text cannot be encoded"):
            first = self._copy.encode("a", add_special_tokens=False).tokens[:1]
        self.spaced = bool(first) and first[0].startswith(_SPACES)

    def find(self, name: str) -> int | None:
        """Return the id of a control token; None if there is none of this name."""
        return self._controls.get(name)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text on its own."""
        return self._bare(" " + text) if self.spaced else self._plain(text)

    def encode_bare(self, text: str) -> list[int]:
        """Return the ids of a text with nothing in front."""
        return self._bare(text) if self.spaced else self._plain(text)

    def encode_infill(self, text: str) -> list[int]:
        """Return the ids of a text behind the carrier."""
        return self._bare(text)

    def _plain(self, text: str) -> list[int]:
        return self._harmless(self._raw(text))

    def _bare(self, text: str) -> list[int]:
        """Encode behind the carrier. Other added tokens are split off here: each rest would begin with a space."""
        if self._cut is None:
            return self._harmless(self._raw(CARRIER + text)[self._carrier :])
        ids: list[int] = []
        for part in self._cut.split(text):
            if part in self._words:
                ids.append(self._words[part])
            elif part:
                ids += self._harmless(self._raw(CARRIER + part)[self._carrier :])
        return ids

    def _raw(self, text: str) -> list[int]:
        try:
            with no_panic("a text cannot be encoded"):
                ids: list[int] = self._copy.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError) as error:  # a lone surrogate
            if getattr(self, "spaced", True):
                raise PromptError(f"a text cannot be encoded: {error}") from error
            mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            ids = self._copy.encode(mended, add_special_tokens=False).ids
        return ids

    def _harmless(self, ids: list[int]) -> list[int]:
        """Replace each control token of the model's own vocabulary by the ids of its letters."""
        if self._forbidden.isdisjoint(ids):
            return ids
        spelled: list[int] = []
        for index in ids:
            spelled += self._letters(index) if index in self._forbidden else [index]
        return spelled

    def _letters(self, index: int) -> list[int]:
        letters = self._copy.id_to_token(index)
        ids = [i for letter in letters for i in self._raw(CARRIER + letter)[self._carrier :]]
        return [i for i in ids if i not in self._forbidden]

    def _unknown_id(self) -> int | None:
        unknown = getattr(self._copy.model, "unk_token", None)
        return self._copy.token_to_id(unknown) if unknown else None


def format_of_controls(encoder: JsonEncoder) -> Format:
    """Return the format that fits the control tokens of a tokenizer.json.

    Raises:
        PromptError: several formats fit.
    """
    has = {name: encoder.find(name) is not None for name in _TELLING}
    for name, tokens in _NEWEST_FIRST:
        if all(has[token] for token in tokens) and (encoder.spaced or name in _TEKKEN):
            return find_format(name)
    if encoder.spaced:
        return find_format("v1")
    raise PromptError(
        "this tokenizer.json does not say which prompt format its model was trained with; pass format='v3-tekken' "
        "(Pixtral 12B) or format='v7-tekken' (Mistral Small 3.1)"
    )


_NEWEST_FIRST: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("v15", ("[MODEL_SETTINGS]",)),
    ("v13", ("[THINK]", "[ARGS]")),
    ("v11", ("[ARGS]", "[CALL_ID]")),
    ("v7m1", ("[SYSTEM_PROMPT]", "[IMG_BREAK]")),
    ("v7", ("[SYSTEM_PROMPT]",)),
    ("v3", ("[IMG]",)),
    ("v2", ("[INST]",)),
)
_SPACES = ("▁", "Ġ")  # a space in SentencePiece and in byte-level vocabularies
_TELLING = frozenset(token for _, tokens in _NEWEST_FIRST for token in tokens)
_TEKKEN = ("v15", "v13", "v11")


def _alternatives(words: Any) -> re.Pattern[str] | None:
    ordered = sorted(words, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None
