"""Two sides in turn, on a machine that others use too: waits for quiet, and says how busy it was. Needs no package."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

QUIET = 0.15  # of all cores: others may take so much of a turn
WAIT = float(
    os.environ.get("BENCH_WAIT", "20")
)  # seconds that a turn waits for quiet before it begins all the same
_STAT = Path("/proc/stat")
_TICK = 100  # per second, on every Linux that Python runs on


def _busy_and_all() -> tuple[float, float]:
    """Seconds that all cores together were busy, and that have gone by, since the start of the system."""
    fields = [int(word) for word in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICK, sum(fields) / _TICK


def busy(seconds: float = 0.3) -> float:
    """Which part of all cores is busy while this process sleeps; 0 where the system does not say."""
    if not _STAT.exists():
        return 0.0
    before = _busy_and_all()
    time.sleep(seconds)
    after = _busy_and_all()
    return (after[0] - before[0]) / max(after[1] - before[1], 1e-9)


def await_quiet() -> float:
    """Wait until others leave the machine alone, at most WAIT seconds; how busy it was at last."""
    until = time.monotonic() + WAIT
    found = busy()
    while found > QUIET and time.monotonic() < until:
        time.sleep(0.5)
        found = busy()
    return found


def interleaved(
    sides: Mapping[str, Callable[[], float]], turns: int, *, wait: bool = True
) -> dict[str, list[float]]:
    """Side → its figure of every turn; the sides one after another, turn by turn, in alternating order.

    Under the key "busy" stands how busy others kept the machine right before each turn.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    found["busy"] = []
    order = list(sides)
    for _ in range(turns):
        found["busy"].append(await_quiet() if wait else busy())
        for name in order:
            found[name].append(sides[name]())
        order.reverse()
    return found


def ratio(found: Mapping[str, Sequence[float]], over: str, under: str) -> dict[str, Any]:
    """found[over] / found[under] of each turn: median, and the lowest and highest."""
    each = [a / b for a, b in zip(found[over], found[under], strict=True)]
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)
