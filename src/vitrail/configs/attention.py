"""The names of attention that callers may give: all mean the one exact attention. Nothing is computed here."""

import warnings
from typing import Any

from vitrail.arguments import short
from vitrail.errors import UnsupportedError

# All names of one thing here: attention is exact in each. The others name programs of a GPU that make the same numbers.
ATTENTION = (None, "sdpa", "eager")
OTHER_ATTENTION = (
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "sdpa_paged",
    "eager_paged",
    "paged_attention",
)


def check_attention(name: Any) -> None:
    """Accept the names of exact attention, with a warning where Vitrail's own runs under another's name."""
    wanted = (
        name.values() if isinstance(name, dict) else [name]
    )  # a dict names one for each part of the model
    for one in wanted:
        if isinstance(one, str) and one in OTHER_ATTENTION:
            warnings.warn(
                f"attn_implementation={one!r} is Vitrail's own exact attention, as 'sdpa' and 'eager' are.",
                stacklevel=5,
            )
        elif one is not None and (not isinstance(one, str) or one not in ATTENTION):
            raise UnsupportedError(
                f"attn_implementation {short(one)} is not supported; leave it out: Vitrail has one exact attention, which "
                f"{', '.join(map(repr, (*ATTENTION[1:], *OTHER_ATTENTION)))} name too."
            )
