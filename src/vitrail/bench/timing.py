"""Timing by turns: a workload and its limit are measured alternately.

A shared machine changes its speed within seconds, so a figure is the median of ratios whose two sides were measured
back to back, never the ratio of two medians.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

LEAST = 0.3  # minimum seconds per turn for short workloads

Work = Callable[[], object]
Limit = Callable[[], float]
# A clock in seconds: wall time (time.perf_counter), or this process's CPU time (time.process_time), which with one
# thread is unaffected by other load.
Clock = Callable[[], float]


@dataclass(slots=True)
class Turn:
    """Several turns of one workload: seconds per call, and the limit per second measured before and after."""

    times: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Return the median seconds per call."""
        return statistics.median(self.times)

    @property
    def limit(self) -> float:
        """Return the median limit."""
        return statistics.median(self.limits)

    def shares(self, work: float) -> list[float]:
        """Return for each turn work per second as a fraction of the limit."""
        return [work / spent / limit for spent, limit in zip(self.times, self.limits, strict=True)]

    def share(self, work: float) -> float:
        """Return the median of `shares`."""
        return statistics.median(self.shares(work))


def seconds(work: Work, times: int = 1, clock: Clock = time.perf_counter) -> float:
    """Return seconds per call of `work` over `times` calls."""
    started = clock()
    for _ in range(times):
        work()
    return (clock() - started) / times


def calls_per_turn(work: Work, least: float = LEAST) -> int:
    """Return how many calls take at least `least` seconds; makes two warm-up calls."""
    work()
    once = seconds(work)
    return max(1, min(1000, round(least / max(once, 1e-6))))


def by_turns(works: Sequence[Work], limits: Sequence[Limit], repeat: Iterable[int]) -> list[Turn]:
    """Measure each workload with its own limit, in turn, for each of `repeat`; the limit before and after each workload."""
    calls = [calls_per_turn(work) for work in works]
    turns = [Turn() for _ in works]
    for _ in repeat:
        for work, limit, times, turn in zip(works, limits, calls, turns, strict=True):
            before = limit()
            turn.times.append(seconds(work, times))
            turn.limits.append((before + limit()) / 2)
    return turns
