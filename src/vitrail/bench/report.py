"""What a benchmark found, as an object for JSON and as lines for a person. Measures nothing."""

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
    """What is measured: names and numbers as they were given.

    layers: of the decoder, or of the tower where only that is measured; context: positions that are cached before;
    side: of a square image, in pixels; repeat: turns. progress: called with what is being done.
    """

    geometry: str
    format: str
    layers: int
    context: int | None = None
    side: int | None = None
    repeat: int = 5
    progress: Callable[[str], None] = field(default=lambda text: None, repr=False, compare=False)

    def turns(self) -> Iterator[int]:
        """The numbers of the turns, each told to `progress`."""
        for turn in range(self.repeat):
            self.progress(f"turn {turn + 1} of {self.repeat}")
            yield turn


@dataclass(frozen=True, slots=True)
class Measured:
    """One piece of work beside its limit.

    what: in words; tokens: that one call reads or gives; cost: its least bytes and its products; turn: its time and its
    limit's, side by side; limit: which of the two; more: further figures by name.
    """

    what: str
    tokens: int
    cost: Cost
    turn: Turn
    limit: str
    more: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Bytes or operations per second, whichever the limit counts."""
        return (self.cost.bytes if self.limit == READ else self.cost.flop) / self.turn.seconds

    def as_dict(self) -> dict[str, Any]:
        """Seconds, bytes and operations; `share` is the median of the turns' ratios."""
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
    """A benchmark's name, its setting, the machine, and what was measured."""

    benchmark: str
    setting: Setting
    machine: Machine
    measured: list[Measured]
    more: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: sizes in bytes, times in seconds."""
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
        """The same in words."""
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
    """A further figure in its unit, which its name ends with."""
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
