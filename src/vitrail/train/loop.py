"""The training loop: steps, learning rate, moving average, metrics, and a stop at any step that loses nothing.

It knows neither the model nor the data: both come as functions. Optimisers come from the caller; checkpoints are
written by `state.py`.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import state
from .peers import Peers

Item = TypeVar("Item")
Loss = Callable[[Item], tuple[Tensor, Mapping[str, float]]]
"""One batch → (scalar loss, figures to log)."""
Data = Callable[[int], Iterable[Item]]
"""Step to begin with → the batches of that step and all later ones. Batch k must be the same whenever it is asked for."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and learning rate of one run.

    The rate rises over `warmup` steps, then moves in a straight line from 1 to `final`, times each optimiser's own.
    """

    steps: int
    warmup: int = 50
    final: float = 1.0
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.998  # decay of the moving average of the weights
    save_every: int = 500
    log_every: int = 20
    keep: int = 2  # checkpoints that stay on disk
    bf16: bool = False  # autocast; float32 weights stay the master copy

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return rise * (1 + (self.final - 1) * step / max(1, self.steps))


@dataclass
class Run(Generic[Item]):
    """Everything one run owns. `run()` goes on from the newest checkpoint in `folder`, or from the beginning."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    loss: Loss[Item]
    data: Data[Item]
    schedule: Schedule
    folder: Path
    name: str = "run"
    step: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)
    peers: Peers = field(default_factory=lambda: Peers())
    asked: bool = False  # this process was asked to stop
    stopped: bool = False  # all peers agreed to, after the same step
    _rates: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def run(self, on_log: Callable[[dict[str, Any]], None] | None = None) -> bool:
        """Train until the schedule ends (True) or SIGTERM/SIGINT asks to stop (False); either way save first."""
        state.restore(self)
        self.peers.wait()  # nobody writes before all have read
        with stop_on_signal(self):
            self._steps(iter(self.data(self.step)) if self.step < self.schedule.steps else iter(()), on_log)
        self._save()
        return self.step >= self.schedule.steps

    def _steps(self, batches: Iterator[Item], on_log: Callable[[dict[str, Any]], None] | None) -> None:
        sums: dict[str, float] = {}
        begun, since = time.monotonic(), self.step
        while self.step < self.schedule.steps and not self.stopped:
            figures = self._one(next(batches))
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + value
            if self.step % self.schedule.log_every == 0:
                count = self.step - since
                record: dict[str, Any] = {
                    "run": self.name,
                    "step": self.step,
                    "rate": self.schedule.rate(self.step),
                }
                record |= {key: value / count for key, value in sums.items()}
                record["seconds_per_step"] = (time.monotonic() - begun) / count
                self._log(record)
                if on_log is not None and self.peers.rank == 0:
                    on_log(record)
                sums, begun, since = {}, time.monotonic(), self.step
            if self.step % self.schedule.save_every == 0:
                self._save()

    def _save(self) -> None:
        if self.peers.rank == 0:
            state.save(self)
        self.peers.wait()

    def _one(self, batch: Item) -> dict[str, float]:
        factor = self.schedule.rate(self.step)
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.schedule.bf16):
            loss, figures = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.stopped = self.peers.average(self.model.parameters(), self.asked)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        if torch.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._move_average()
        return {"loss": float(loss.detach()), "norm": float(norm), **figures}

    @torch.no_grad()
    def _move_average(self) -> None:
        # Young averages follow faster, so that the random start is soon forgotten.
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        parameters = dict(self.model.named_parameters())
        names = [name for name in self.average if name in parameters]
        torch._foreach_lerp_([self.average[n] for n in names], [parameters[n] for n in names], 1 - decay)

    def _log(self, record: Mapping[str, Any]) -> None:
        if self.peers.rank:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Stoppable(Protocol):
    """A run that can be asked to stop."""

    asked: bool
    stopped: bool


class stop_on_signal:  # noqa: N801  # reads as a statement where it is used
    """While inside, SIGTERM and SIGINT end the run after the step at hand (in the main thread, which alone hears them)."""

    def __init__(self, run: Stoppable) -> None:
        self._run = run
        self._before: dict[int, Any] = {}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._run.asked = True

    def __enter__(self) -> None:
        self._run.asked = self._run.stopped = False
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
