"""Repair of tokenizer.json files to which transformers' older converter gave another rule than Mistral's Tekken."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from vitrail.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tekken's own rule: that of tekken.json files, and transformers 4.57's replacement for the wrong one.
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The converter's default, which is right for Llama 3.
WRONG = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Ids of these tokens in every Tekken vocabulary, and in no other one.
_TEKKEN_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}


def repair_regex(backend: Tokenizer, where: str, asked: Any, stored: Any = None) -> bool | None:
    """Replace the rule of a Tekken vocabulary by Tekken's own if `asked`, else `stored`, is True.

    Args:
        asked: fix_mistral_regex of the call; None gives a warning for the wrong rule.
        stored: that of tokenizer_config.json.

    Returns:
        Whether the rule was repaired; None if there was nothing to repair.

    Raises:
        InputError: `asked` is neither None nor a boolean.
    """
    if asked not in (None, True, False):
        raise InputError(f"fix_mistral_regex is True or False; got {asked!r}")
    rules = _rules(backend)
    if not rules or rules[0] == TEKKEN or any(backend.token_to_id(t) != i for t, i in _TEKKEN_IDS.items()):
        return None
    if asked or (asked is None and stored is True):
        _repair(backend)
        return True
    if asked is None and rules[0] == WRONG:
        warnings.warn(
            f"{where} cuts texts by a regular expression that is not Mistral's, so that many texts get ids the model was "
            "not trained with; give fix_mistral_regex=True, or set it to true in tokenizer_config.json, to repair this.",
            stacklevel=5,
        )
    return False


def _rules(backend: Tokenizer) -> list[str | None]:
    """Return the regular expressions of a pre-tokenizer that begins with a Split, in order; else []."""
    state = _state(backend)
    parts = state.get("pretokenizers", []) if state.get("type") == "Sequence" else [state]
    if not parts or parts[0].get("type") != "Split":
        return []
    return [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]


def _state(backend: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = (
        {} if backend.pre_tokenizer is None else json.loads(backend.pre_tokenizer.__getstate__())
    )
    return found


def _repair(backend: Tokenizer) -> None:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(TEKKEN), "isolated")
    if _state(backend).get("type") == "Sequence":
        backend.pre_tokenizer[0] = split
    else:
        backend.pre_tokenizer = split
