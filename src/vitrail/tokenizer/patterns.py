"""Static check for regular expressions of a tokenizer's file with unbounded matching time. Never runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vitrail.errors import CheckpointError

_LONGEST = 4096  # characters; published rules have at most about 1000
_CHOICES = 1024  # ways to try a part of a rule before it fails
_REPEATS = 10_000  # product of nested repeats
_MANY = 16  # a range of repeats as wide as this counts as unbounded
_NAMED = re.compile(r"[pPxuoc]\{[^}]*\}|x[0-9A-Fa-f]{0,2}|u[0-9A-Fa-f]{4}|.", re.DOTALL)
_COUNT = re.compile(r"\{(\d{0,6})(,?)(\d{0,6})\}")
_OPENING = re.compile(
    r"\?(?:[imsaudlPW-]*:|[imsaudlPW-]+(?=\))|<?[=!]|>|P?<[A-Za-z_]\w*>|'[A-Za-z_]\w*'|#[^)]*(?=\)))"
)


@dataclass
class _Item:
    """One part of a rule, repeated `low` to `high` times (None: unbounded)."""

    branches: list[list[_Item]] = field(default_factory=list)
    low: int = 1
    high: int | None = 1
    looks: bool = False

    @property
    def is_nullable(self) -> bool:
        """Whether it can match the empty string, and so cannot fail."""
        empty = any(all(item.is_nullable for item in branch) for branch in self.branches)
        return not self.looks and (self.low == 0 or (bool(self.branches) and empty))

    @property
    def is_long(self) -> bool:
        """Whether it can be repeated without bound, or many times."""
        return self.high is None or self.high - self.low >= _MANY


def check_pattern(pattern: str, where: str) -> None:
    """Raise CheckpointError for a rule with worse than quadratic matching time or unsupported syntax.

    Rejected are repeats of parts with several ways to match, two repeats in a row before a part that can fail,
    back references, and recursion.
    """
    if len(pattern) > _LONGEST:
        raise CheckpointError(
            f"{where}: a regular expression has {len(pattern)} characters; at most {_LONGEST} may be."
        )
    try:
        whole = _Item(_Reader(pattern).branches())
        fault = _fault(whole, 1)
        if fault is None:
            degree, choices = _cost(whole, False)
            fault = "has repeats in a row that can be divided in too many ways" if degree > 1 else None
            fault = "can be tried in too many ways" if choices > _CHOICES else fault
    except (ValueError, IndexError):
        fault = "has a form that is not read here"
    except RecursionError:
        fault = "is nested too deeply"
    if fault is not None:
        raise CheckpointError(
            f"{where}: the regular expression {pattern[:80]!r} {fault}, so that a text could take for ever; it is not used."
        )


class _Reader:
    """Parser of the syntax that Oniguruma and Rust's engines share."""

    def __init__(self, pattern: str) -> None:
        self._text, self._at = pattern, 0

    def branches(self, depth: int = 0) -> list[list[_Item]]:
        """Parse the alternatives up to the end of the pattern or of the group."""
        if depth > 50:
            raise RecursionError
        found: list[list[_Item]] = [[]]
        while self._at < len(self._text):
            letter = self._text[self._at]
            if letter == ")":
                if not depth:
                    raise ValueError(letter)
                return found
            self._at += 1
            if letter == "|":
                found.append([])
                continue
            item = self._atom(letter, depth)
            if item is not None:
                found[-1].append(self._repeated(item))
        if depth:
            raise ValueError("no end of a group")
        return found

    def _atom(self, letter: str, depth: int) -> _Item | None:
        if letter == "(":
            return self._group(depth)
        if letter == "[":
            self._set()
        elif letter == "\\":
            named = _NAMED.match(self._text, self._at)
            if named is None or named[0][0] in "123456789kgKRXG":
                raise ValueError("a reference")
            self._at = named.end()
            if named[0] in ("b", "B", "A", "z", "Z"):
                return _Item(looks=True)
        elif letter in "^$":
            return _Item(looks=True)
        elif letter in "*+?":
            raise ValueError("nothing to repeat")
        return _Item()

    def _group(self, depth: int) -> _Item | None:
        looks = False
        if self._text[self._at] == "?":
            opening = _OPENING.match(self._text, self._at)
            if opening is None:
                raise ValueError("a group of another kind")
            self._at = opening.end()
            looks = opening[0] in ("?=", "?!", "?<=", "?<!")
        elif self._text[self._at] == "*":
            raise ValueError("a callout")
        inner = self.branches(depth + 1)
        self._at += 1
        return _Item(inner, looks=looks)

    def _set(self) -> None:
        """Skip a set of characters, which may hold further sets."""
        depth = 1
        if self._text[self._at] == "^":
            self._at += 1
        if self._text[self._at] == "]":
            self._at += 1
        while depth:
            letter = self._text[self._at]
            depth += (letter == "[") - (letter == "]")
            self._at += 2 if letter == "\\" else 1

    def _repeated(self, item: _Item) -> _Item:
        """Apply the quantifiers behind a part; each further one repeats the repeat."""
        while (bounds := self._bounds()) is not None:
            low, high = bounds
            if high is not None and high < low:
                raise ValueError("a range that is none")
            bare = item.low == 1 and item.high == 1 and not item.looks
            item = _Item(item.branches, low, high) if bare else _Item([[item]], low, high)
        return item

    def _bounds(self) -> tuple[int, int | None] | None:
        letter = self._text[self._at : self._at + 1]
        if letter in ("*", "+", "?") and letter:
            self._at += 1
            if self._text[self._at : self._at + 1] in ("?", "+"):  # lazy or possessive
                self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[letter]
        count = _COUNT.match(self._text, self._at) if letter == "{" else None
        if count is None or not (count[1] or count[3]):
            return None
        self._at = count.end()
        if self._text[self._at : self._at + 1] == "?":
            self._at += 1
        low = int(count[1] or 0)
        return low, int(count[3]) if count[3] else None if count[2] else low


def _parts(item: _Item) -> Iterator[_Item]:
    for branch in item.branches:
        for part in branch:
            yield part
            yield from _parts(part)


def _fault(item: _Item, repeats: int) -> str | None:
    """Describe the fault of repeats within repeats; None if there is none."""
    if item.high != 1:
        several = any(part.low != part.high or len(part.branches) > 1 for part in _parts(item))
        if (several or len(item.branches) > 1) and (item.high is None or item.high > 4):
            return "repeats what can be matched in several ways"
        if item.high is None and any(part.looks for part in _parts(item)):
            return "repeats what can match nothing"
        repeats *= item.high or 1
        if repeats > _REPEATS:
            return "repeats too often"
    faults = (_fault(part, repeats) for branch in item.branches for part in branch)
    return next((fault for fault in faults if fault is not None), None)


def _cost(item: _Item, fails_after: bool) -> tuple[int, int]:
    """Count the long repeats that backtracking can divide anew, and the ways to try the rest."""
    degree, tried = 0, [1]
    fails_after = fails_after or item.looks
    for branch in item.branches:
        own, ways, after = 0, 1, fails_after
        for part in reversed(branch):
            more, further = _cost(part, after)
            own, ways = own + more, min(ways * further, _CHOICES + 1)
            after = after or not part.is_nullable
        degree = max(degree, own)
        tried.append(ways)
    choices = max(1, sum(tried[1:])) if fails_after else max(tried)
    if fails_after and item.high is not None and not item.is_long:
        choices *= item.high - item.low + 1
    return degree + (item.is_long and fails_after), choices
