"""Names of attention implementations that callers may give: all mean the one exact attention. No computation."""

import warnings
from typing import Any

from vitrail.arguments import short
from vitrail.errors import UnsupportedError

# All of them exact attention; all but Vitrail's own name GPU implementations with the same results.
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
    """Check the name of an attention implementation; warn where Vitrail's own takes another's place."""
    wanted = name.values() if isinstance(name, dict) else [name]  # a dict: one per part of the model
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
