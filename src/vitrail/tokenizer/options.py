"""Keywords of a tokenizer's from_pretrained: read, without effect, or rejected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vitrail.errors import InputError
from vitrail.files.keywords import is_secret, refuse_unknown
from vitrail.tokenizer.special_tokens import NAMES

# Keywords that override tokenizer_config.json.
SETTINGS: Final = (
    "add_bos_token", "add_eos_token", "added_tokens_decoder", "additional_special_tokens", "chat_template",
    "clean_up_tokenization_spaces", "extra_special_tokens", "fix_mistral_regex", "model_input_names", "model_max_length",
    "padding_side", "tokenizer_class", "truncation_side", *NAMES,
)  # fmt: skip
# transformers' keywords that change nothing where they have these values; None stands for any.
_WITHOUT_EFFECT: Final[dict[str, tuple[Any, ...] | None]] = {
    "_commit_hash": None,
    "add_prefix_space": (False, None),
    "from_slow": (False, None),
    "legacy": None,
    "name_or_path": None,
    "processor_class": None,
    "split_special_tokens": (False, None),
    "tokenizer_file": (None,),
    "tokenizer_type": (None,),
    "use_fast": (True, None),
    "verbose": None,
}
_HINTS: Final = {
    "max_length": "give model_max_length here, or max_length with truncation=True in the call",
    "padding": "give it in the call",
    "return_tensors": "give it in the call",
    "truncation": "give it in the call",
    "use_fast": "leave out use_fast=False: there is one kind of tokenizer",
}


def take_options(given: Mapping[str, Any], stored: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return the keywords that are read; drop those that change nothing.

    Args:
        given: keywords of the call.
        stored: tokenizer_config.json, whose values may be repeated.
        owner: name of the class, for errors.

    Raises:
        InputError: unknown keywords, or values that cannot be used.
        UnsupportedError: keywords that are not supported.
    """
    kept = {name: value for name, value in given.items() if not _changes_nothing(name, value, stored)}
    refuse_unknown(f"{owner}.from_pretrained", kept, SETTINGS, hints=_HINTS)
    for name in ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces"):
        if not isinstance(kept.get(name), (bool, type(None))):
            raise InputError(f"{name} is True or False; got {kept[name]!r}")
    return kept


def native_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the keywords that change nothing in a mistral-common tokenizer, whose rule needs no repair."""
    names = ("fix_mistral_regex", *_WITHOUT_EFFECT)
    return {n: value for n, value in given.items() if n not in names or not _native(n, value)}


def _native(name: str, value: Any) -> bool:
    return value in (None, True, False) if name == "fix_mistral_regex" else _changes_nothing(name, value, {})


def drop_secrets(stored: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json without entries that hold secrets, which older programs saved there."""
    return {name: value for name, value in stored.items() if not is_secret(name)}


def _changes_nothing(name: str, value: Any, stored: Mapping[str, Any]) -> bool:
    if name in SETTINGS:
        return False
    if name in _WITHOUT_EFFECT:
        values = _WITHOUT_EFFECT[name]
        return values is None or value in values
    return name in stored and bool(stored[name] == value)
