"""A regular expression that finds control tokens in a text, as tokenizers cut added tokens out of it."""

import re
from functools import lru_cache
from typing import TypeAlias

from vitrail.errors import PromptError

_LONGEST, _MOST = (
    200,
    1 << 21,
)  # characters of one control token, and of all; tokenizers have some ten thousand
_Tree: TypeAlias = dict[str, "_Tree"]


@lru_cache(maxsize=16)
def control_pattern(controls: tuple[str, ...], any_case: bool = False) -> re.Pattern[str]:
    """A pattern for the leftmost, then longest of `controls`.

    It branches letter by letter: a tokenizer has a thousand control tokens, and most begin with the same sign.
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
