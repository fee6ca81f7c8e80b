"""MistralVocabulary: tokens ↔ ids one by one in a tokenizer of mistral-common. Texts are encoded in mistral.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from vitrail.arguments import checked, short
from vitrail.errors import InputError, UnsupportedError
from vitrail.responses.ids import to_ids


@checked
class MistralVocabulary:
    """The vocabulary of `tokenizer`, a mistral-common MistralTokenizer, and its special tokens."""

    tokenizer: Any

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the tokens of several; incomplete characters appear as �."""
        if isinstance(ids, int):
            tokens = self.convert_ids_to_tokens([ids], skip_special_tokens)
            if not tokens:
                raise InputError(f"id {ids} is special, and special tokens are skipped")
            return tokens[0]
        found = to_ids(ids)
        self._check_ids(found)
        return [
            self._inner.id_to_piece(i) for i in found if not (skip_special_tokens and i in self._special_ids)
        ]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several. Raises InputError for unknown tokens."""
        if not isinstance(tokens, str):
            if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, str) for token in tokens):
                raise InputError(f"expected a token or a list of tokens, got {short(tokens)}.")
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if tokens not in self._token_ids:
            raise InputError(f"{tokens!r} is no token of this vocabulary")
        return self._token_ids[tokens]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for every special id, 0 for the others."""
        if token_ids_1 is not None or already_has_special_tokens:
            raise UnsupportedError("token_ids_1 and already_has_special_tokens are not supported")
        return [int(index in self._special_ids) for index in token_ids_0]

    def get_vocab(self) -> dict[str, int]:
        """Return token → id. Of several ids with one string (bytes of incomplete characters) the last one counts."""
        return {token: index for index, token in enumerate(self._inner.vocab())}

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return int(self._inner.n_words)

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def bos_token_id(self) -> int:
        """Id that begins a sequence."""
        return int(self._inner.bos_id)

    @property
    def eos_token_id(self) -> int:
        """Id that ends a sequence."""
        return int(self._inner.eos_id)

    @property
    def unk_token_id(self) -> int:
        """Id of unknown tokens."""
        return int(self._inner.unk_id)

    @property
    def pad_token_id(self) -> int | None:
        """Id for padding; None in sentencepiece files, which have none."""
        return int(self._inner.pad_id) if self._inner.pad_id >= 0 else None

    @property
    def bos_token(self) -> str:
        """Token that begins a sequence."""
        return str(self.convert_ids_to_tokens(self.bos_token_id))

    @property
    def eos_token(self) -> str:
        """Token that ends a sequence."""
        return str(self.convert_ids_to_tokens(self.eos_token_id))

    @property
    def unk_token(self) -> str:
        """Token for unknown text."""
        return str(self.convert_ids_to_tokens(self.unk_token_id))

    @property
    def pad_token(self) -> str | None:
        """Token for padding; None where there is none."""
        return None if self.pad_token_id is None else str(self.convert_ids_to_tokens(self.pad_token_id))

    @property
    def all_special_ids(self) -> list[int]:
        """Every control id, in order."""
        return sorted(self._special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens of `all_special_ids`."""
        return [str(self._inner.id_to_piece(index)) for index in self.all_special_ids]

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The control tokens that are recognised in a prompt of one author."""
        return tuple(dict.fromkeys(self.all_special_tokens))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name → text of the special tokens that have a name."""
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token, "unk_token": self.unk_token}
        return named if self.pad_token is None else {**named, "pad_token": self.pad_token}

    @property
    def _inner(self) -> Any:
        return self.tokenizer.instruct_tokenizer.tokenizer

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        found = getattr(self._inner, "special_ids", None)  # mistral-common 1.9 and later
        if found is not None:
            return frozenset(found)
        controls = getattr(self._inner, "_control_tokens", None)  # sentencepiece only
        return frozenset(range(self._inner.num_special_tokens) if controls is None else controls())

    @cached_property
    def _token_ids(self) -> dict[str, int]:
        """Token → lowest id, in the spelling of `convert_ids_to_tokens`."""
        return {str(self._inner.id_to_piece(index)): index for index in reversed(range(self.vocab_size))}

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and max(ids) >= self.vocab_size:
            raise InputError(f"id {max(ids)} is beyond the vocabulary of {self.vocab_size} ids")
