"""control_pattern: a regular expression for control tokens in a text, with the matching rule for added tokens."""

import re
from functools import lru_cache
from typing import TypeAlias

from vitrail.errors import PromptError

_LONGEST, _MOST = (
    200,
    1 << 21,
)  # characters of one control token, of all together (tokenizers have about 10,000)
_Tree: TypeAlias = dict[str, "_Tree"]


@lru_cache(maxsize=16)
def control_pattern(controls: tuple[str, ...], any_case: bool = False) -> re.Pattern[str]:
    """Compile a pattern for the leftmost, then longest of `controls`.

    The pattern is a prefix tree: a tokenizer has about a thousand control tokens, most with the same first character.

    Args:
        controls: Control tokens as texts.
        any_case: Match without regard to case.

    Raises:
        PromptError: A control token, or all of them together, is too long.
    """
    if any(len(token) > _LONGEST for token in controls) or sum(map(len, controls)) > _MOST:
        raise PromptError(
            f"the tokenizer's control tokens are too long: {_LONGEST} characters is the most of one, {_MOST:,} of all"
        )
    tree: _Tree = {}
    for token in controls:
        node = tree
        for letter in token:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_branches(tree) if tree else r"(?!)", re.IGNORECASE if any_case else 0)


def _branches(tree: _Tree) -> str:
    ways = [re.escape(letter) + _branches(below) for letter, below in sorted(tree.items()) if letter]
    body = "|".join(ways) if len(ways) < 2 else f"(?:{'|'.join(ways)})"
    return f"(?:{body})?" if "" in tree and ways else body
