"""SpecialTokens: a tokenizer's named special tokens (bos, eos, pad, …), stored, read and set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from vitrail.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class _Token:
    """The text of one special token, None where there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, holder: SpecialTokens, owner: type | None = None) -> str | None:
        return holder.named_tokens.get(self.name)

    def __set__(self, holder: SpecialTokens, value: Any) -> None:
        if value is None:
            holder.named_tokens.pop(self.name, None)
        else:
            holder.named_tokens[self.name] = token_text(value, self.name)


class _TokenId:
    """The id of one special token, None where there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, holder: SpecialTokens, owner: type | None = None) -> int | None:
        token = holder.named_tokens.get(self.name)
        return None if token is None else holder.convert_tokens_to_ids(token)

    def __set__(self, holder: SpecialTokens, value: int | None) -> None:
        token = None if value is None else holder.convert_ids_to_tokens(value)
        setattr(holder, self.name, token)


class SpecialTokens:
    """Base of tokenizers: `bos_token`, `bos_token_id` and so on, and the lists of all of them."""

    named_tokens: dict[str, str]
    additional_special_tokens: list[str]

    bos_token = _Token()
    eos_token = _Token()
    unk_token = _Token()
    sep_token = _Token()
    pad_token = _Token()
    cls_token = _Token()
    mask_token = _Token()
    bos_token_id = _TokenId()
    eos_token_id = _TokenId()
    unk_token_id = _TokenId()
    sep_token_id = _TokenId()
    pad_token_id = _TokenId()
    cls_token_id = _TokenId()
    mask_token_id = _TokenId()

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several."""
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return the token of an id, or the tokens of several."""
        raise NotImplementedError

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Name → text of every special token that is set."""
        named: dict[str, Any] = {name: self.named_tokens[name] for name in NAMES if name in self.named_tokens}
        if self.additional_special_tokens:
            named["additional_special_tokens"] = list(self.additional_special_tokens)
        return named

    @property
    def all_special_tokens(self) -> list[str]:
        """The named and the additional special tokens, each once."""
        named = (self.named_tokens[name] for name in NAMES if name in self.named_tokens)
        return list(dict.fromkeys((*named, *self.additional_special_tokens)))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        ids: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return ids

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """The ids of `additional_special_tokens`."""
        ids: list[int] = self.convert_tokens_to_ids(self.additional_special_tokens)
        return ids


def token_text(value: Any, name: str) -> str:
    """Return the text of a token given as text, JSON object or `AddedToken`. Raises CheckpointError."""
    text = value.get("content") if isinstance(value, Mapping) else getattr(value, "content", value)
    if not isinstance(text, str):
        raise CheckpointError(f"{name} must be a text or an object with 'content'; got {value!r:.100}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{name} holds half of a character, {text!a:.100}; correct the text") from None
    return text


def added_token(value: Any, *, special: bool) -> AddedToken:
    """Make a token for the `tokenizers` library from a text, a JSON object or an `AddedToken`."""
    from tokenizers import AddedToken

    if isinstance(value, AddedToken):
        return value
    flags = (
        {flag: bool(value[flag]) for flag in _FLAGS if flag in value} if isinstance(value, Mapping) else {}
    )
    if isinstance(value, Mapping) and "special" in value:
        special = bool(value["special"])
    text = token_text(value, "a special token")
    return AddedToken(text, special=special, **{"normalized": False, **flags})


def setting(config: Mapping[str, Any], name: str, kinds: tuple[type, ...], default: Any) -> Any:
    """Return an entry of tokenizer_config.json, else `default`. Raises CheckpointError for another type."""
    value = config.get(name)
    if value is None:
        return default
    if (
        not isinstance(value, kinds)
        or isinstance(value, bool)
        or (isinstance(value, float) and not isfinite(value))
    ):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(f"tokenizer_config.json: {name} must be {wanted}; got {value!r}")
    return value


def read_named(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens named in a tokenizer_config.json."""
    return {name: token_text(config[name], name) for name in NAMES if config.get(name) is not None}


def read_additional(config: Mapping[str, Any]) -> list[str]:
    """Return the additional special tokens: `additional_special_tokens`, or 5.x's `extra_special_tokens`."""
    listed: Iterable[Any] = (
        config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    )
    if isinstance(listed, Mapping):
        listed = listed.values()
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Collection):
        raise CheckpointError(f"additional_special_tokens must be a list of tokens; got {listed!r:.100}")
    return [token_text(token, "additional_special_tokens") for token in listed]
