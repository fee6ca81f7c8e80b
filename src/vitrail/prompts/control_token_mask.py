"""Who wrote which character of a prompt: user text apart from the template's control tokens. No Jinja, no ids.

A template only sees strings, so a user who types "[INST]" would be tokenised as if the template had written it.
Before a template is rendered, every character of user text that could be part of a control token is therefore
replaced, one to one, by a private-use stand-in (a *veil*). Lengths, white space and JSON escaping stay as they
were; after rendering, a control token that is still readable can only come from the template.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from vitrail.errors import PromptError

_FIRST_STAND_IN, _LAST_STAND_IN = 0xF0000, 0x10FFFD  # planes 15 and 16 are for private use
_FOLD = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}  # to lower case, lengths kept
_NEVER_VEILED = set("\"'\\&")  # JSON and HTML escape these: a stand-in would come out differently
_Tree: TypeAlias = dict[str, "_Tree"]


@dataclass(frozen=True)
class Veil:
    """A one-to-one exchange of the characters that control tokens are made of, and the way back."""

    there: dict[int, int]
    back: dict[int, int]
    controls: tuple[str, ...]

    @classmethod
    def over(cls, controls: Iterable[str], *texts: str) -> "Veil":
        """A veil for the tokens `controls`, whose stand-ins occur in none of `texts`."""
        tokens = tuple(sorted(set(controls), key=lambda token: (-len(token), token)))
        used = set("".join(tokens)) - _NEVER_VEILED
        alphabet = sorted(c for c in used if c.isprintable() and not c.isspace())
        taken = {ord(c) for text in texts for c in set(text) if ord(c) >= _FIRST_STAND_IN}
        base = _FIRST_STAND_IN
        while taken.intersection(range(base, base + len(alphabet))):
            base += max(1, len(alphabet))
            if base + len(alphabet) > _LAST_STAND_IN:
                raise PromptError("the messages use all private-use characters; a prompt needs some of them")
        there = {ord(c): base + i for i, c in enumerate(alphabet)}
        return cls(there, {stand_in: c for c, stand_in in there.items()}, tokens)

    def deep(self, text: str) -> str:
        """`text` with every character veiled that occurs in any control token."""
        return text.translate(self.there)

    def literal(self, text: str) -> str:
        """`text` with only whole control tokens veiled, in any case: a template may change it."""
        return control_pattern(self.controls, any_case=True).sub(lambda match: self.deep(match.group()), text)

    def shallow(self, text: str) -> str:
        """`text` with whole control tokens veiled, and ends that could make one with their neighbours."""
        edges = _edges(self.controls)
        folded = text.translate(_FOLD)
        starts, ends = folded.lstrip(), folded.rstrip()
        if len(ends.lstrip()) <= edges.longest and any(ends.lstrip() in token for token in edges.tokens):
            return self.deep(text)
        head = max((n for n in range(1, edges.longest) if starts[:n] in edges.suffixes), default=0)
        tail = max((n for n in range(1, edges.longest) if ends[-n:] in edges.prefixes), default=0)
        head += len(folded) - len(starts)
        tail += len(folded) - len(ends)
        text = self.literal(text)
        if head + tail >= len(text):
            return self.deep(text)
        return self.deep(text[:head]) + text[head : len(text) - tail] + self.deep(text[len(text) - tail :])

    def lift(self, text: str) -> str:
        """The text as it was before `deep`, `literal` or `shallow`."""
        return text.translate(self.back)


class Prompt(str):
    """A rendered prompt: a plain string that also remembers which of its characters users wrote.

    It equals, prints and slices as the string. Any operation on it gives an ordinary `str`, which a tokenizer
    then reads as a prompt that one person wrote, markers included.
    """

    veiled: str
    veil: Veil

    def __new__(cls, veiled: str, veil: Veil) -> "Prompt":
        self = super().__new__(cls, veil.lift(veiled))
        self.veiled = veiled
        self.veil = veil
        return self

    def __getnewargs__(self) -> tuple[str, Veil]:  # type: ignore[override]
        return self.veiled, self.veil

    def controls(self) -> list[str]:
        """The control tokens that the template wrote, in order."""
        return control_pattern(self.veil.controls).findall(self.veiled)

    def holds_typed_controls(self) -> bool:
        """Whether reading the bare string would find control tokens that the template did not write."""
        if self.veiled == str(self):
            return False
        found = control_pattern(self.veil.controls).finditer(self)
        return any(not self.veiled.startswith(match.group(), match.start()) for match in found)

    def with_aliases(self, aliases: dict[str, str]) -> str:
        """The bare string with the template's control tokens, and only those, replaced by `aliases`."""
        marked = control_pattern(self.veil.controls).sub(lambda match: aliases[match.group()], self.veiled)
        return self.veil.lift(marked)


def count(text: str, token: str) -> int:
    """How often `token` stands in `text`; in a `Prompt`, how often the template wrote it."""
    return (text.veiled if isinstance(text, Prompt) else text).count(token)


def substitute(text: str, token: str, replacements: Iterator[str]) -> str:
    """`text` with each `token` (in a `Prompt`: each that the template wrote) replaced by the next replacement."""
    source = text.veiled if isinstance(text, Prompt) else text
    replaced = re.sub(re.escape(token), lambda _: next(replacements), source)
    return Prompt(replaced, text.veil) if isinstance(text, Prompt) else replaced


def veil_values(value: object, text: Callable[[str], str], key: Callable[[str], str]) -> object:
    """A JSON-like value with `text` applied to every string in it and `key` to every key."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {key(k) if isinstance(k, str) else k: veil_values(v, text, key) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [veil_values(item, text, key) for item in value]
    return value


@lru_cache(maxsize=16)
def control_pattern(controls: tuple[str, ...], any_case: bool = False) -> re.Pattern[str]:
    """A pattern for the leftmost, then longest of `controls`, as tokenizers cut added tokens out.

    It branches letter by letter: a tokenizer has a thousand control tokens, and most begin with the same sign.
    """
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


@dataclass(frozen=True, slots=True)
class _Edges:
    """Control tokens in lower case, and what they begin and end with."""

    tokens: tuple[str, ...]
    prefixes: frozenset[str]
    suffixes: frozenset[str]
    longest: int


@lru_cache(maxsize=16)
def _edges(controls: tuple[str, ...]) -> _Edges:
    tokens = tuple(token.translate(_FOLD) for token in controls)
    prefixes = frozenset(token[:n] for token in tokens for n in range(1, len(token)))
    suffixes = frozenset(token[n:] for token in tokens for n in range(1, len(token)))
    return _Edges(tokens, prefixes, suffixes, max(map(len, tokens), default=0))
