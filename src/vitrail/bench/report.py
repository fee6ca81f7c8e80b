"""Results of a benchmark, as an object for JSON and as lines of text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vitrail.bench.machine import Machine
from vitrail.bench.timing import Turn
from vitrail.files.formatting import in_words
from vitrail.model.cost import Cost

READ, MULTIPLY = "streaming read", "matrix products"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured, as given on the command line.

    Attributes:
        layers: of the decoder, or of the tower if only that is measured.
        context: previously cached positions.
        side: of a square image, in pixels.
        repeat: number of turns.
        progress: called with a description of the current turn.
    """

    geometry: str
    format: str
    layers: int
    context: int | None = None
    side: int | None = None
    repeat: int = 5
    progress: Callable[[str], None] = field(default=lambda text: None, repr=False, compare=False)

    def turns(self) -> Iterator[int]:
        """Yield the turn numbers, reporting each to `progress`."""
        for turn in range(self.repeat):
            self.progress(f"turn {turn + 1} of {self.repeat}")
            yield turn


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured workload with its limit.

    Attributes:
        what: description.
        tokens: read or produced per call.
        cost: minimum bytes and operations.
        turn: its time and its limit's, side by side.
        limit: READ or MULTIPLY.
        more: further figures by name.
    """

    what: str
    tokens: int
    cost: Cost
    turn: Turn
    limit: str
    more: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Return bytes or operations per second, in the unit of the limit."""
        return (self.cost.bytes if self.limit == READ else self.cost.flop) / self.turn.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return seconds, bytes and operations; `share` is the median of the turns' ratios."""
        return {
            "what": self.what,
            "tokens": self.tokens,
            "seconds": self.turn.seconds,
            "tokens_per_second": self.tokens / self.turn.seconds,
            "bytes": self.cost.bytes,
            "flop": self.cost.flop,
            "limit": self.limit,
            "limit_per_second": self.turn.limit,
            "share": self.turn.share(self._work),
            "lowest_share": min(self.turn.shares(self._work)),
            "highest_share": max(self.turn.shares(self._work)),
            **self.more,
        }

    @property
    def _work(self) -> int:
        return self.cost.bytes if self.limit == READ else self.cost.flop


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark's name, setting, machine and measurements."""

    benchmark: str
    setting: Setting
    machine: Machine
    measured: list[Measured]
    more: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON: sizes in bytes, times in seconds."""
        given = {name: getattr(self.setting, name) for name in Setting.__slots__ if name != "progress"}
        setting = {name: value for name, value in given.items() if value is not None}
        return {
            "benchmark": self.benchmark,
            **setting,
            "machine": self.machine.as_dict(),
            "measured": [one.as_dict() for one in self.measured],
            **self.more,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        machine, setting = self.machine, self.setting
        yield f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads"
        kernels = f"kernels {machine.instructions}" if machine.instructions else "no kernels, PyTorch alone"
        yield f"vitrail {machine.library} ({kernels}), torch {machine.torch} ({machine.torch_isa})"
        yield (
            f"{self.benchmark}: {setting.geometry}, {setting.layers} layers, {setting.format}, random weights, "
            f"{setting.repeat} turns"
        )
        for one in self.measured:
            yield from _lines_of(one)
        for name, value in self.more.items():
            yield f"{name.replace('_', ' ')}: {_shown(name, value)}"


def _lines_of(one: Measured) -> Iterator[str]:
    found = one.as_dict()
    yield ""
    yield f"{one.what}: {_time(one.turn.seconds)}, {found['tokens_per_second']:,.4g} tokens/s"
    yield f"  work    {in_words(one.cost.bytes)} to read, {_flop(one.cost.flop)}"
    yield f"  ours    {_rate(one.rate, one.limit)}"
    yield f"  limit   {_rate(one.turn.limit, one.limit)} ({one.limit}, measured between the turns)"
    spread = f"{found['lowest_share']:.0%} to {found['highest_share']:.0%}"
    yield f"  share   {found['share']:.0%} of the limit (median; turns from {spread})"
    for name, value in one.more.items():
        yield f"  {name.replace('_', ' ')}  {value:.4g}"


def _shown(name: str, value: Any) -> str:
    """Format a further figure in the unit at the end of its name."""
    if name.endswith("_seconds") or name.startswith("seconds_"):
        return _time(value)
    if name.endswith("_bytes"):
        return in_words(int(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _flop(count: float) -> str:
    for unit, name in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} FLOP"


def _rate(value: float, limit: str) -> str:
    return f"{value / 1e9:.3g} GB/s" if limit == READ else f"{_flop(value)}/s"
