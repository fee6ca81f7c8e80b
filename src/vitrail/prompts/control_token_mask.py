"""ControlTokenMask: user text apart from control tokens while a template is rendered; for ids see tokenizer/escaping.py.

A template only sees strings, so a user who types "[INST]" would be tokenised as if the template had written it.
Before a template is rendered, every character of user text that could be part of a control token is therefore
replaced, one to one, by a private-use stand-in (it is *masked*). Lengths, white space and JSON escaping stay as they
were; after rendering, a control token that is still readable can only come from the template.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from vitrail.errors import PromptError
from vitrail.prompts.control_pattern import control_pattern
from vitrail.prompts.rendered_prompt import RenderedPrompt, Span

_FIRST_STAND_IN, _LAST_STAND_IN = 0xF0000, 0x10FFFD  # planes 15 and 16 are for private use
_FOLD = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}  # to lower case, lengths kept
_NEVER_MASKED = set("\"'\\&")  # JSON and HTML escape these: a stand-in would come out differently


@dataclass(frozen=True)
class ControlTokenMask:
    """A one-to-one exchange of the characters that control tokens are made of, and the way back."""

    stand_ins: dict[int, int]
    originals: dict[int, int]
    controls: tuple[str, ...]
    base: int  # the first stand-in

    @classmethod
    def over(cls, controls: Iterable[str], *texts: str) -> "ControlTokenMask":
        """A mask for the tokens `controls`, whose stand-ins occur in none of `texts`."""
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
        """The mask for `controls` whose first stand-in is `base`."""
        return cls._from(base, *_alphabet(tuple(controls)))

    @staticmethod
    def may_start_at(base: int) -> bool:
        """Whether a mask's first stand-in can be `base`."""
        return _FIRST_STAND_IN <= base <= _LAST_STAND_IN

    @classmethod
    def _from(cls, base: int, tokens: tuple[str, ...], alphabet: str) -> "ControlTokenMask":
        stand_ins = {ord(c): base + i for i, c in enumerate(alphabet)}
        return cls(stand_ins, {stand_in: c for c, stand_in in stand_ins.items()}, tokens, base)

    def mask_all(self, text: str) -> str:
        """`text` with every character masked that occurs in any control token."""
        return text.translate(self.stand_ins)

    def widened(self, characters: set[str]) -> "ControlTokenMask":
        """A mask for the visible ones of `characters` too; its `mask_all` alone is meant to be used."""
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
        """`text`, masked by this mask, as `mask`, of which this is a wider one, masks it."""
        return text.translate({s: c for s, c in self.originals.items() if s not in mask.originals})

    def mask_tokens(self, text: str) -> str:
        """`text` with only whole control tokens masked, in any case: a template may change it."""
        return control_pattern(self.controls, any_case=True).sub(
            lambda match: self.mask_all(match.group()), text
        )

    def mask_user(self, text: str) -> str:
        """`text` with whole control tokens masked, and ends that could make one with their neighbours."""
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
        """`text` as it is, a plain `str`."""
        return str.__str__(text)

    def swap(self, text: str) -> str:
        """`text` with what is masked unmasked, and what could be and is not masked."""
        return text.translate({**self.stand_ins, **self.originals})

    def unmask(self, text: str) -> str:
        """The text as it was before any of its characters were masked."""
        return text.translate(self.originals)

    def rendered(self, masked: str) -> RenderedPrompt:
        """The prompt that a template made of masked texts: masked characters are users', the rest is its own."""
        found = control_pattern(self.controls).finditer(masked)
        spans = [Span(*match.span(), "control", 1) for match in found]
        if self.originals:
            users = f"[{chr(min(self.originals))}-{chr(max(self.originals))}]+"
            spans += [Span(*match.span(), "user") for match in re.finditer(users, masked)]
            spans.sort()
        return RenderedPrompt(self.unmask(masked), tuple(spans))


def map_strings(value: object, text: Callable[[str], str], key: Callable[[str], str]) -> object:
    """A JSON-like value with `text` applied to every string in it and `key` to every key."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {key(k) if isinstance(k, str) else k: map_strings(v, text, key) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, text, key) for item in value]
    return value


@lru_cache(maxsize=16)
def _alphabet(controls: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Control tokens, longest first, and the characters of them that can be masked."""
    tokens = tuple(sorted(set(controls), key=lambda token: (-len(token), token)))
    used = set("".join(tokens)) - _NEVER_MASKED
    return tokens, "".join(sorted(c for c in used if c.isprintable() and not c.isspace()))


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
