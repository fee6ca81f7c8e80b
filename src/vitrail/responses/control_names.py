"""control_names: the control tokens of a tokenizer by id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def control_names(tokenizer: Any, also: Iterable[str] = ()) -> dict[int, str]:
    """Map ids to names of control tokens.

    Args:
        tokenizer: Any of Vitrail's tokenizers.
        also: Further names, included if they are one token, even one not marked as special.
    """
    if not hasattr(tokenizer, "added_tokens_decoder"):
        return dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    marked = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    known = ((tokenizer.convert_tokens_to_ids(name), name) for name in also)
    found = {i: name for i, name in known if i is not None and tokenizer.convert_ids_to_tokens(i) == name}
    return {**found, **marked}
