"""What the comparisons share: their options, our own side, and how a figure is printed. Runs in Vitrail's environment."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from turns import interleaved, median, ratio
from worker import CLOCK, Worker, clock

from vitrail.bench.machine import this_machine
from vitrail.bench.matmul import MatrixRate
from vitrail.bench.prefill import Prefill
from vitrail.bench.stream import StreamingRead
from vitrail.bench.timing import calls_per_turn, seconds
from vitrail.bench.work import decoder_shapes


def options(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """--geometry, --layers, --threads, --turns and --out; `defaults` are their defaults.

    With BENCH_CLOCK=cpu in the environment both sides count seconds of their own work; take --threads 1 with it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", default=defaults.get("geometry", "pixtral-12b"))
    parser.add_argument("--layers", type=int, default=defaults.get("layers", 8))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=defaults.get("turns", 5))
    parser.add_argument("--out", type=Path, help="append one JSON object a line to this file")
    return parser


def numbers(text: str) -> list[int]:
    """ "1,2,4" → [1, 2, 4]."""
    return [int(word) for word in text.split(",")]


class Timed:
    """Our own work as a side: seconds of one call, from as many calls as make a turn of a third of a second."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self.calls = calls_per_turn(work)

    def __call__(self) -> float:
        return seconds(self._work, self.calls, clock)


def header(about: Mapping[str, Any]) -> None:
    """Which machine, and which peer."""
    machine = this_machine()
    counted = "CPU" if os.environ.get(CLOCK) == "cpu" else "wall"
    kernels = machine.instructions or "none, PyTorch alone"
    print(
        f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads; kernels {kernels}; {counted} seconds",
        flush=True,
    )
    print(
        f"vitrail {machine.library}, torch {machine.torch} ({machine.torch_isa}); peer: {json.dumps(about)}",
        flush=True,
    )


def compared(
    what: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    turns: int,
    *,
    work: float = 0.0,
    limits: Mapping[str, Callable[[], float]] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Both sides and the limits in turn; printed, appended to `out`, and given back.

    ours, theirs: seconds. limits: name → work per second, measured in the same turns; `work` is ours in the same unit.
    """
    limits = limits or {}
    found = interleaved({"ours": ours, "theirs": theirs, **limits}, turns)
    times = ratio(found, "theirs", "ours")
    record: dict[str, Any] = {
        "what": what,
        "ours_seconds": median(found["ours"]),
        "theirs_seconds": median(found["theirs"]),
        "times_as_fast": times,
        "busy_before": median(found["busy"]),
        "turns": turns,
    }
    text = f"{what}: ours {show(record['ours_seconds'])}, theirs {show(record['theirs_seconds'])}, {spread(times)} as fast"
    for name in limits:
        shares = {"share": [work / spent for spent in found["ours"]], name: found[name]}
        record[name] = {"per_second": median(found[name]), "share": ratio(shares, "share", name)}
        text += f"; {spread(record[name]['share'])} of {name} ({record[name]['per_second'] / 1e9:.3g} G/s)"
    print(f"{text}; before the turns the machine was busy to {record['busy_before']:.0%}", flush=True)
    keep(out, record)
    return record


def compare_prefill(
    model: Any, peer: Worker, lengths: Sequence[int], given: argparse.Namespace, formats: str = ""
) -> None:
    """Compare prefills of each length with the peer's. given: parsed `options`; formats: added to what is printed."""
    for length in lengths:
        work = Prefill(model, length)
        peer.ask("prefill", rows=length)  # the first one prepares its kernels
        compared(
            f"prefill {length} positions{formats}",
            Timed(work),
            lambda length=length: peer.ask("prefill", rows=length)["seconds"],  # type: ignore[misc]
            given.turns,
            work=work.cost.flop,
            limits={"PyTorch's products": MatrixRate(decoder_shapes(model, length), clock).rate},
            out=given.out,
        )


def keep(out: Path | None, record: Mapping[str, Any]) -> None:
    """Append a record to a file of results."""
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"command": sys.argv, **record}) + "\n")


def spread(found: Mapping[str, float]) -> str:
    """A median and its range."""
    return f"{found['median']:.2f} × ({found['lowest']:.2f} to {found['highest']:.2f})"


def show(spent: float) -> str:
    """Seconds for a person."""
    return f"{spent:.2f} s" if spent >= 1 else f"{1000 * spent:.3g} ms"


def reader(geometry: str) -> Callable[[], float]:
    """The streaming read as a limit."""
    read = StreamingRead(geometry, clock)
    return read.bandwidth


def set_threads(count: int) -> None:
    """Of PyTorch and of our kernels."""
    torch.set_num_threads(count)
