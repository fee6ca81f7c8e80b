"""Pattern: regular expressions from files, matched without backtracking in bounded time.

A pattern becomes a program of small steps, all of whose paths are followed at once (Thompson 1968). Look-ahead,
classes, groups and counted repetition are supported; back references, which need memory of the text, are refused. A
Budget bounds the steps of all patterns and texts of one configuration together.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from vitrail.errors import ConfigError

LIMIT = 10_000  # characters of a pattern
_STEPS = 20_000  # steps of a program
_REPEATS = 1_000
_DEPTH = 50  # groups within groups

_WORK = 4_000_000  # steps built and followed per configuration: some seconds

_Step = tuple[str, Any, Any]
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda c: c.isalnum() or c == "_",
    "s": str.isspace,
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class Budget:
    """The steps left to all patterns together."""

    def __init__(self, left: int = _WORK) -> None:
        self.left = left

    def spend(self, steps: int) -> None:
        """Count steps. Raises ConfigError past the limit."""
        self.left -= steps
        if self.left < 0:
            raise ConfigError(
                "the patterns take too long to match; give fewer or simpler ones, such as names of modules."
            )


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed regular expression in Python's syntax; `budget` counts its parsing and matching."""

    source: str
    steps: tuple[_Step, ...]
    budget: Budget

    @classmethod
    def parse(cls, source: str, budget: Budget | None = None) -> Pattern:
        """Parse a pattern. Raises ConfigError for an invalid or too long one, or one that needs backtracking."""
        budget = budget or Budget()
        if len(source) > LIMIT:
            raise ConfigError(f"a pattern may have {LIMIT:,} characters, got {len(source):,}.")
        parser = _Parser(source, budget)
        steps = parser.alternatives(0)
        if parser.place < len(source):
            raise parser.fault("a ')' without its '('")
        budget.spend(len(source) + len(steps))
        return cls(source, (*steps, ("match", None, None)), budget)

    def fullmatch(self, text: str) -> bool:
        """Return whether the whole of `text` matches, as re.fullmatch. ConfigError past the budget."""
        return _run(self.steps, text, 0, self.budget, whole=True)

    def match(self, text: str) -> bool:
        """Return whether a beginning of `text` matches, as re.match. ConfigError past the budget."""
        return _run(self.steps, text, 0, self.budget, whole=False)


class PatternTable:
    """Values by patterns of the ends of module names; the first match counts. All lookups share one Budget."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = dict(table)
        self._budget = Budget()
        self._tests: list[tuple[Callable[[str], bool], Any]] = []
        self._found: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[PatternTable], tuple[dict[str, Any]]]:
        return PatternTable, (self.table,)  # parsed patterns are functions: not picklable

    def get(self, name: str, default: Any) -> Any:
        """Return the value of the first pattern that matches the name or an ending of it after a dot.

        Raises:
            ConfigError: as Pattern.
        """
        if not self._tests:
            self._tests = [(_ending(key, self._budget), value) for key, value in self.table.items()]
        if name not in self._found:
            self._budget.spend(len(self._tests))
            fits = (value for test, value in self._tests if test(name))
            self._found[name] = next(fits, None)
        value = self._found[name]
        return default if value is None else value


_TAIL = re.compile(r"(?<![\\\w])\w+\Z")
_PLAIN = re.compile(r"(?:\w|\\?\.)+")


def _ending(key: str, budget: Budget) -> Callable[[str], bool]:
    """Return whether a name, or its ending after a dot, matches `key`; a plain name needs no program."""
    if len(key) > LIMIT or not _PLAIN.fullmatch(key):
        pattern = Pattern.parse(rf"(?:.*\.)?(?:{key})", budget)
        tail = _TAIL.search(key)
        if tail is None or "|" in key:
            return pattern.fullmatch
        end = tail[0]  # the letters at the end of every match: most names need no run
        return lambda name: name.endswith(end) and pattern.fullmatch(name)
    letters = key.replace("\\.", "\n")  # escaped dots; others stand for any character
    size = len(letters)

    def fits(name: str) -> bool:
        start = len(name) - size
        if start < 0 or (start and name[start - 1] != "."):
            return False
        return all(
            own == "." or own == char or (own == "\n" and char == ".")
            for own, char in zip(letters, name[start:], strict=True)
        )

    return fits


class _Parser:
    """One pass over the source, from left to right; every method leaves `place` after the part it has read."""

    def __init__(self, source: str, budget: Budget) -> None:
        self.source = source
        self.budget = budget
        self.place = 0
        self.ahead = False  # inside a look-ahead

    def fault(self, text: str) -> ConfigError:
        return ConfigError(
            f"the pattern {self.source[:200]!r} cannot be used: {text} at character {self.place}."
        )

    def alternatives(self, depth: int) -> list[_Step]:
        if depth > _DEPTH:
            raise self.fault("too many groups within groups")
        ways = [self._sequence(depth)]
        while self._take("|"):
            ways.append(self._sequence(depth))
        total = sum(len(way) + 2 for way in ways) - 2
        found: list[_Step] = []
        for way in ways[:-1]:
            found += [("split", 1, len(way) + 2), *way]
            found.append(("jump", total - len(found), None))
        found += ways[-1]
        if len(found) > _STEPS:
            raise self.fault("it is too large")
        return found

    def _sequence(self, depth: int) -> list[_Step]:
        found: list[_Step] = []
        while self.place < len(self.source) and self.source[self.place] not in "|)":
            found += self._repeated(self._atom(depth))
            if len(found) > _STEPS:
                raise self.fault("it is too large")
        return found

    def _take(self, text: str) -> bool:
        if self.source.startswith(text, self.place):
            self.place += len(text)
            return True
        return False

    def _next(self) -> str:
        if self.place >= len(self.source):
            raise self.fault("it ends too early")
        self.place += 1
        return self.source[self.place - 1]

    def _atom(self, depth: int) -> list[_Step]:
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return [("char", self._class(), None)]
        if char == ".":
            return [("char", lambda c: c != "\n", None)]
        if char in "^$":
            return [("at", char, None)]
        if char in "*+?{":
            raise self.fault(f"{char!r} has nothing to repeat")
        if char != "\\":
            return [("char", char.__eq__, None)]
        return self._escaped()

    def _escaped(self) -> list[_Step]:
        char = self._next()
        if char in "AZbB":
            return [("at", char, None)]
        if char.lower() in _CLASSES:
            return [("char", _class_of(char), None)]
        if char.isalnum() and char not in _CONTROLS:
            raise self.fault(f"\\{char} is not supported")
        return [("char", _CONTROLS.get(char, char).__eq__, None)]

    def _group(self, depth: int) -> list[_Step]:
        ahead = ""
        if self._take("?"):
            if self._take("=") or self._take("!"):
                ahead = self.source[self.place - 1]
                if self.ahead:
                    raise self.fault("a look-ahead within a look-ahead is not supported")
            elif self._take("P<"):
                while self._next() != ">":
                    pass
            elif not self._take(":"):
                raise self.fault("this kind of group is not supported")
        self.ahead = self.ahead or bool(ahead)
        inner = self.alternatives(depth + 1)
        if not self._take(")"):
            raise self.fault("a '(' is not closed")
        if not ahead:
            return inner
        self.ahead = False
        return [("ahead", (*inner, ("match", None, None)), ahead == "=")]

    def _class(self) -> Callable[[str], bool]:
        negated = self._take("^")
        tests: list[Callable[[str], bool]] = []
        single: set[str] = set()
        letters: set[str] = set()
        ranges: list[tuple[str, str]] = []
        first = True
        while first or not self._take("]"):
            first = False
            low = self._next()
            if low == "\\":
                low = self._next()
                if low.lower() in _CLASSES:
                    if low not in letters:
                        tests.append(_class_of(low))
                    letters.add(low)
                    continue
                low = _CONTROLS.get(low, low)
            if self.source.startswith("-", self.place) and not self.source.startswith("-]", self.place):
                self.place += 1
                high = self._next()
                high = self._next() if high == "\\" else high
                if high < low:
                    raise self.fault(f"the range {low}-{high} is upside down")
                ranges.append((low, high))
            else:
                single.add(low)
        if ranges:
            tests.append(_within(ranges))
        tests.append(single.__contains__)
        return lambda c: any(test(c) for test in tests) != negated

    def _repeated(self, inner: list[_Step]) -> list[_Step]:
        while self.place < len(self.source) and self.source[self.place] in "*+?{":
            low, high = self._bounds()
            self._take("?")  # lazy and greedy match the same texts
            if self._take("+"):
                raise self.fault("possessive repetition is not supported")
            if len(inner) * max(low, high or 0, 1) > _STEPS:
                raise self.fault("it is too large")
            many = inner * low
            if high is None:
                many = [*many, ("split", 1, len(inner) + 2), *inner, ("jump", -len(inner) - 1, None)]
            else:
                many += [("split", 1, len(inner) + 1), *inner] * (high - low)
            inner = many
            self.budget.spend(len(inner))
        return inner

    def _bounds(self) -> tuple[int, int | None]:
        char = self._next()
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        end = self.source.find("}", self.place)
        low, comma, high = self.source[self.place : max(end, self.place)].partition(",")
        if end < 0 or not all(part.isdecimal() and len(part) < 5 for part in (low or "0", high or "0")):
            raise self.fault("expected {n}, {n,} or {n,m}")
        self.place = end + 1
        least = int(low or 0)
        most = least if not comma else int(high) if high else None
        if max(least, most or 0) > _REPEATS or (most is not None and most < least):
            raise self.fault(f"repetition goes up to {_REPEATS}, the smaller number first")
        return least, most


def _within(ranges: list[tuple[str, str]]) -> Callable[[str], bool]:
    """Return whether a character lies in one of the ranges, by binary search."""
    ranges.sort()
    lows = [low for low, _ in ranges]
    highs = list(accumulate((high for _, high in ranges), max))
    return lambda c: (at := bisect_right(lows, c)) > 0 and c <= highs[at - 1]


def _class_of(letter: str) -> Callable[[str], bool]:
    test = _CLASSES[letter.lower()]
    return test if letter.islower() else lambda c: not test(c)


def _run(steps: Sequence[_Step], text: str, start: int, budget: Budget, *, whole: bool) -> bool:
    """Follow all paths through the program at once, one character after the other."""
    ways = {0}
    for place in range(start, len(text) + 1):
        reached = _closure(steps, ways, text, place, budget)
        budget.spend(len(reached))
        done = len(steps) - 1 in reached
        if done and (not whole or place == len(text)):
            return True
        if place == len(text):
            return False
        ways = {way + 1 for way in reached if steps[way][0] == "char" and steps[way][1](text[place])}
        if not ways:
            return False
    return False


def _closure(steps: Sequence[_Step], ways: set[int], text: str, place: int, budget: Budget) -> set[int]:
    """Return every step reachable from `ways` without reading a character."""
    seen: set[int] = set()
    waiting = list(ways)
    while waiting:
        way = waiting.pop()
        if way in seen:
            continue
        seen.add(way)
        kind, first, second = steps[way]
        if kind == "split":
            waiting += [way + first, way + second]
        elif kind == "jump":
            waiting.append(way + first)
        elif (kind == "at" and _holds(first, text, place)) or (
            kind == "ahead" and _run(first, text, place, budget, whole=False) == second
        ):
            waiting.append(way + 1)
    return seen


def _holds(kind: str, text: str, place: int) -> bool:
    if kind in "^A":
        return place == 0
    if kind in "$Z":
        return place == len(text) or (kind == "$" and text[place:] == "\n")
    word = _CLASSES["w"]
    before = place > 0 and word(text[place - 1])
    after = place < len(text) and word(text[place])
    return (before != after) == (kind == "b")
