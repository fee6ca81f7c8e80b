"""Vocabulary: tokens ↔ ids one by one, and new tokens. Texts are encoded in fast.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from vitrail.arguments import check, checked
from vitrail.errors import InputError
from vitrail.responses.ids import to_ids
from vitrail.tokenizer.safety import no_panic
from vitrail.tokenizer.special_tokens import NAMES, SpecialTokens, added_token, read_additional, token_text

_WAIT = 1.0  # seconds to wait for other threads to release the library's tokenizer
_CLEANUPS = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")


@checked
class Vocabulary(SpecialTokens):
    """The vocabulary of a `tokenizers.Tokenizer`, with the methods of transformers' fast tokenizers."""

    _tokenizer: Any

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several; unk's id for unknown tokens."""
        if isinstance(tokens, str):
            if not tokens.isascii():
                token_text(tokens, "a token")
            found = self._tokenizer.token_to_id(tokens)
            unknown = self.named_tokens.get("unk_token")
            return self._tokenizer.token_to_id(unknown) if found is None and unknown is not None else found
        check("convert_tokens_to_ids", "tokens", tokens, str | list[str])
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the tokens of several."""
        if isinstance(ids, int):
            (index,) = to_ids(ids)
            return self._tokenizer.id_to_token(index) if index < 2**32 else None
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [
            self._tokenizer.id_to_token(item) for item in to_ids(ids) if item not in skipped and item < 2**32
        ]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of a list of tokens."""
        decoder = self._tokenizer.decoder
        with no_panic("these tokens cannot be decoded"):
            return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

    def get_vocab(self) -> dict[str, int]:
        """Return token → id of the whole vocabulary."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model, without added ones."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    @property
    def is_fast(self) -> bool:
        """True: the ids come from the `tokenizers` library."""
        return True

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` underneath."""
        return self._tokenizer

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id → token of all added tokens, which are split off a text before the model."""
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        return added

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The special ones of the added tokens: for templates, not for users."""
        return tuple(token.content for _, token in sorted(self.added_tokens_decoder.items()) if token.special)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return the number of ids that `add_special_tokens` adds."""
        return int(self._tokenizer.num_special_tokens_to_add(bool(pair)))

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens to the vocabulary. The model's embeddings have to grow with it.

        Returns:
            The number of new tokens.
        """
        listed = new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        tokens = [
            token_text(t, "a token") if isinstance(t, str) else added_token(t, special=special_tokens)
            for t in listed
        ]
        add = self._tokenizer.add_special_tokens if special_tokens else self._tokenizer.add_tokens
        added = int(_when_free(add, tokens))
        self._vocabulary_changed()
        return added

    def _vocabulary_changed(self) -> None:
        """Drop data derived from the vocabulary, after tokens were added; for subclasses."""

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any]) -> int:
        """Set named special tokens and add the new ones.

        Args:
            special_tokens_dict: {"pad_token": "<pad>", "additional_special_tokens": […]}.

        Returns:
            The number of new tokens.

        Raises:
            InputError: unknown names.
        """
        unknown = [name for name in special_tokens_dict if name not in (*NAMES, "additional_special_tokens")]
        if unknown:
            raise InputError(
                f"{', '.join(unknown)}: special tokens are {', '.join(NAMES)}, additional_special_tokens"
            )
        added = 0
        for name, value in special_tokens_dict.items():
            if name == "additional_special_tokens":
                self.additional_special_tokens = read_additional({name: value})
                added += self.add_tokens(list(value), special_tokens=True)
            else:
                setattr(self, name, value)
                added += self.add_tokens(value, special_tokens=True)
        return added


def _when_free(add: Callable[[Any], int], tokens: Any) -> int:
    """Call `add(tokens)` between the calls of other threads; raise InputError where one always encodes."""
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            return add(tokens)
        except RuntimeError as error:
            if "borrowed" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise InputError(
                    "the tokenizer is in use by other threads; add tokens before it is shared."
                ) from error
            time.sleep(0.001)


def clean_up(text: str) -> str:
    """Remove the spaces that word-wise tokenizers leave before punctuation and English contractions."""
    for spaced in _CLEANUPS[:4]:
        text = text.replace(spaced, spaced[1:])
    text = text.replace(" ' ", "'")
    for spaced in _CLEANUPS[4:]:
        text = text.replace(spaced, spaced[1:])
    return text
