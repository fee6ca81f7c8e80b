"""Timing by turns: work and what limits it, one after the other, again and again. Knows no model.

A shared machine changes its speed within seconds, so a figure is the median of ratios whose two sides were measured side
by side, never the ratio of two figures.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

LEAST = 0.3  # seconds that a turn of short work should take

Work = Callable[[], object]
Limit = Callable[[], float]
# Seconds from anywhere: of the wall (time.perf_counter), or of this process's work (time.process_time), which with one
# thread is the same on a machine that others use.
Clock = Callable[[], float]


@dataclass(slots=True)
class Turn:
    """The same work in several turns: seconds of one call, and the limit per second as measured before and after."""

    times: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of one call: the median."""
        return statistics.median(self.times)

    @property
    def limit(self) -> float:
        """The median."""
        return statistics.median(self.limits)

    def shares(self, work: float) -> list[float]:
        """Of each turn: work per second as a part of the limit."""
        return [work / spent / limit for spent, limit in zip(self.times, self.limits, strict=True)]

    def share(self, work: float) -> float:
        """The median of `shares`."""
        return statistics.median(self.shares(work))


def seconds(work: Work, times: int = 1, clock: Clock = time.perf_counter) -> float:
    """Seconds per call of `work`, called so many times."""
    started = clock()
    for _ in range(times):
        work()
    return (clock() - started) / times


def calls_per_turn(work: Work, least: float = LEAST) -> int:
    """How many calls take at least so many seconds; warms up with two calls."""
    work()
    once = seconds(work)
    return max(1, min(1000, round(least / max(once, 1e-6))))


def by_turns(works: Sequence[Work], limits: Sequence[Limit], repeat: Iterable[int]) -> list[Turn]:
    """Each work with its own limit, all in turn, for each of `repeat`; the limit is measured before and after each."""
    calls = [calls_per_turn(work) for work in works]
    turns = [Turn() for _ in works]
    for _ in repeat:
        for work, limit, times, turn in zip(works, limits, calls, turns, strict=True):
            before = limit()
            turn.times.append(seconds(work, times))
            turn.limits.append((before + limit()) / 2)
    return turns
