"""ControlTokenMask: user text kept apart from control tokens during rendering; for ids see tokenizer/escaping.py.

Template output is one string, in which a typed "[INST]" would be tokenised like the template's own. Before rendering,
every character of user text that occurs in a control token is therefore replaced, one to one, by a private-use
stand-in (*masked*). Lengths, white space and JSON escaping do not change; a control token that is readable after
rendering comes from the template.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from vitrail.errors import PromptError
from vitrail.prompts.control_pattern import control_pattern
from vitrail.prompts.rendered_prompt import RenderedPrompt, Span

_FIRST_STAND_IN, _LAST_STAND_IN = 0xF0000, 0x10FFFD  # Unicode planes 15 and 16, for private use
_FOLD = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}  # ASCII lower case, equal lengths
_NEVER_MASKED = set("\"'\\&")  # escaped by JSON and HTML: a stand-in would be written differently


@dataclass(frozen=True)
class ControlTokenMask:
    """One-to-one mapping of the characters of control tokens to stand-ins, and its inverse.

    Attributes:
        stand_ins: Code point of a character → code point of its stand-in.
        originals: The inverse of `stand_ins`.
        controls: Control tokens, longest first.
        base: Code point of the first stand-in.
    """

    stand_ins: dict[int, int]
    originals: dict[int, int]
    controls: tuple[str, ...]
    base: int

    @classmethod
    def over(cls, controls: Iterable[str], *texts: str) -> "ControlTokenMask":
        """Build a mask for the tokens `controls` with stand-ins that occur in none of `texts`.

        Raises:
            PromptError: `texts` leave no free range of private-use characters.
        """
        tokens, alphabet = _alphabet(tuple(controls))
        taken = {ord(c) for text in texts for c in set(text) if ord(c) >= _FIRST_STAND_IN}
        base = _FIRST_STAND_IN
        while taken.intersection(range(base, base + len(alphabet))):
            base += max(1, len(alphabet))
            if base + len(alphabet) > _LAST_STAND_IN:
                raise PromptError("the messages use all private-use characters; a prompt needs some of them")
        return cls._from(base, tokens, alphabet)

    @classmethod
    def at(cls, base: int, controls: Iterable[str]) -> "ControlTokenMask":
        """Build the mask for `controls` with `base` as its first stand-in."""
        return cls._from(base, *_alphabet(tuple(controls)))

    @staticmethod
    def may_start_at(base: int) -> bool:
        """Return whether `base` is a valid first stand-in."""
        return _FIRST_STAND_IN <= base <= _LAST_STAND_IN

    @classmethod
    def _from(cls, base: int, tokens: tuple[str, ...], alphabet: str) -> "ControlTokenMask":
        stand_ins = {ord(c): base + i for i, c in enumerate(alphabet)}
        return cls(stand_ins, {stand_in: c for c, stand_in in stand_ins.items()}, tokens, base)

    def mask_all(self, text: str) -> str:
        """Return `text` with every character of any control token masked."""
        return text.translate(self.stand_ins)

    def widened(self, characters: set[str]) -> "ControlTokenMask":
        """Return a mask that also covers the visible ones of `characters`; for `mask_all` and `narrowed` only."""
        more = sorted(c for c in characters - _NEVER_MASKED if c.isprintable() and not c.isspace())
        start = self.base + len(self.stand_ins)
        taken = {ord(c) for c in more if ord(c) >= _FIRST_STAND_IN}
        while taken.intersection(range(start, start + len(more))):
            start += len(more)
        new = [ord(c) for c in more if ord(c) not in self.stand_ins and ord(c) not in taken]
        if start + len(new) > _LAST_STAND_IN:
            return self
        stand_ins = {**self.stand_ins, **{c: start + i for i, c in enumerate(new)}}
        return replace(
            self, stand_ins=stand_ins, originals={stand_in: c for c, stand_in in stand_ins.items()}
        )

    def narrowed(self, text: str, mask: "ControlTokenMask") -> str:
        """Convert `text` from this mask to the narrower `mask` that it was widened from."""
        return text.translate({s: c for s, c in self.originals.items() if s not in mask.originals})

    def mask_tokens(self, text: str) -> str:
        """Return `text` with whole control tokens masked, in any case: templates may change the case."""
        return control_pattern(self.controls, any_case=True).sub(
            lambda match: self.mask_all(match.group()), text
        )

    def mask_user(self, text: str) -> str:
        """Return `text` with whole control tokens masked, and ends that could form one with adjacent text."""
        edges = _edges(self.controls)
        folded = text.translate(_FOLD)
        starts, ends = folded.lstrip(), folded.rstrip()
        if len(ends.lstrip()) <= edges.longest and any(ends.lstrip() in token for token in edges.tokens):
            return self.mask_all(text)
        head = max((n for n in range(1, edges.longest) if starts[:n] in edges.suffixes), default=0)
        tail = max((n for n in range(1, edges.longest) if ends[-n:] in edges.prefixes), default=0)
        head += len(folded) - len(starts)
        tail += len(folded) - len(ends)
        text = self.mask_tokens(text)
        if head + tail >= len(text):
            return self.mask_all(text)
        middle = text[head : len(text) - tail]
        return self.mask_all(text[:head]) + middle + self.mask_all(text[len(text) - tail :])

    def keep(self, text: str) -> str:
        """Return `text` unchanged, as a plain `str`."""
        return str.__str__(text)

    def swap(self, text: str) -> str:
        """Invert the mask of `text`: unmask masked characters and mask the other characters of control tokens."""
        return text.translate({**self.stand_ins, **self.originals})

    def unmask(self, text: str) -> str:
        """Return the original of a masked text."""
        return text.translate(self.originals)

    def found(self, masked: str) -> list[tuple[int, str]]:
        """Find the readable control tokens of a masked text, as (position, token)."""
        return [(match.start(), match.group()) for match in control_pattern(self.controls).finditer(masked)]

    def rendered(self, masked: str) -> RenderedPrompt:
        """Build the prompt of a rendering: masked characters are user text, all others the template's own."""
        found = control_pattern(self.controls).finditer(masked)
        spans = [Span(*match.span(), "control", 1) for match in found]
        if self.originals:
            users = f"[{chr(min(self.originals))}-{chr(max(self.originals))}]+"
            spans += [Span(*match.span(), "user") for match in re.finditer(users, masked)]
            spans.sort()
        return RenderedPrompt(self.unmask(masked), tuple(spans))


def map_strings(value: object, text: Callable[[str], str], key: Callable[[str], str]) -> object:
    """Apply `text` to every string in a JSON-like value, and `key` to every key."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {key(k) if isinstance(k, str) else k: map_strings(v, text, key) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, text, key) for item in value]
    return value


@lru_cache(maxsize=16)
def _alphabet(controls: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Return control tokens, longest first, and their maskable characters."""
    tokens = tuple(sorted(set(controls), key=lambda token: (-len(token), token)))
    used = set("".join(tokens)) - _NEVER_MASKED
    return tokens, "".join(sorted(c for c in used if c.isprintable() and not c.isspace()))


@dataclass(frozen=True, slots=True)
class _Edges:
    """Control tokens in lower case, with their proper prefixes and suffixes and the greatest length."""

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
