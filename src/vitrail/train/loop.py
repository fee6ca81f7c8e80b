"""TrainingLoop: optimizer steps with gradient accumulation, clipping, an EMA of the weights, and exact resume.

The caller provides model, micro-batches, loss and optimizers; checkpoint.py handles the files.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitrail.errors import VitrailError
from vitrail.files.writing import writing
from vitrail.train import checkpoint
from vitrail.train.checkpoint import Named
from vitrail.train.distributed import Peers
from vitrail.train.lr_schedule import Kind, LrSchedule

MicroBatch = TypeVar("MicroBatch")
Loss = Callable[[MicroBatch], tuple[Tensor, Mapping[str, float]]]
"""One micro-batch → (scalar loss, metrics to log)."""
Data = Callable[[int], Iterable[Sequence[MicroBatch]]]
"""First step → micro-batches of that step and all later ones; the same for a step on every call."""
_MOST_NOT_FINITE = 20  # maximum consecutive steps without a finite gradient


@dataclass(frozen=True, slots=True)
class Schedule(LrSchedule):
    """Length, learning rate, regularisation and checkpoints of a run."""

    warmup: int = 50
    kind: Kind | Literal["linear"] = "linear"
    final: float = 1.0
    clip: float = 1.0  # largest norm of the gradient; 0: none
    ema: float = 0.998  # decay of the moving average of the weights; 0: no average
    save_every: int = 500
    log_every: int = 20
    keep: int = 2  # number of checkpoints kept
    bf16: bool = False  # autocast; float32 weights remain the master copy


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step: loss and metrics are sums over micro-batches, norm is the gradient's before clipping."""

    step: int  # number of steps, this one included
    loss: float
    rate: float  # factor of the learning rates
    norm: float
    figures: Mapping[str, float]
    seconds: float


class TrainingLoop(Generic[MicroBatch]):
    """One run and its state: weights, moving average, optimizers, step.

    Args:
        note: returns further values for a checkpoint, as JSON.
        on_save: called after every checkpoint.

    Setting `stop_requested` ends the run after the current step, as SIGTERM and SIGINT do. So does setting `stopped` in
    `on_step`.
    """

    def __init__(
        self,
        model: Named,
        optimizers: Sequence[Optimizer],
        loss: Loss[MicroBatch],
        data: Data[MicroBatch],
        schedule: Schedule,
        folder: Path,
        *,
        name: str = "run",
        peers: Peers | None = None,
        note: Callable[[], dict[str, Any]] = dict,
        on_save: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.optimizers, self.loss, self.data = model, optimizers, loss, data
        self.schedule, self.folder, self.name = schedule, folder, name
        self.peers, self.note, self.on_save = peers or Peers(), note, on_save
        self.step = self.not_finite = 0  # steps done; latest consecutive ones without a finite gradient
        self.stop_requested = self.stopped = False
        self.parameters: list[nn.Parameter] = [p for _, p in model.named_parameters()]
        self.average: dict[str, Tensor] = {}
        if schedule.ema:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def restore(self) -> bool:
        """Load the newest checkpoint in `folder`; return False if there is none."""
        found = checkpoint.restore(self)
        self.peers.wait()  # no process writes before all have read
        return found

    def run(self, on_step: Callable[[StepResult], None] | None = None) -> bool:
        """Train to the schedule's end (True) or until stopped (False); save a checkpoint either way."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with _stop_on_signal(self):
            batches = iter(self.data(self.step)) if self._goes_on() else iter(())
            while self._goes_on():
                result = self._take_step(batches)
                if on_step is not None:
                    on_step(result)
                if self.step % self.schedule.save_every == 0:
                    self._save()
        self._save()
        return self.step >= self.schedule.steps

    def autocast(self) -> torch.autocast:
        """Return the context in which losses are computed."""
        return torch.autocast(self.parameters[0].device.type, torch.bfloat16, enabled=self.schedule.bf16)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Swap the averaged weights, if any, into the model within the block."""
        if not self.average:
            yield
            return
        with torch.no_grad():
            own = [p.detach().clone() for p in self.parameters]
            _copy_into(self.parameters, self.average.values())
            try:
                yield
            finally:
                _copy_into(self.parameters, own)

    def _goes_on(self) -> bool:
        # Several processes stop together, after the step that exchanges the request.
        stop = self.stopped or (self.stop_requested and self.peers.count == 1)
        return self.step < self.schedule.steps and not stop

    def _take_step(self, batches: Iterator[Sequence[MicroBatch]]) -> StepResult:
        begin = time.monotonic()
        factor = self.schedule.factor(self.step)
        loss, figures = 0.0, dict[str, float]()
        for batch in next(batches):
            with self.autocast():
                part, more = self.loss(batch)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
            figures |= {key: figures.get(key, 0) + value for key, value in more.items()}
        self.stopped = self.peers.average(self.parameters, self.stop_requested)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip or math.inf))
        self._update(norm, factor)
        return StepResult(self.step, loss, factor, norm, figures, time.monotonic() - begin)

    def _update(self, norm: float, factor: float) -> None:
        """Update the weights, unless the gradient is not finite, and then their average."""
        self.not_finite = 0 if math.isfinite(norm) else self.not_finite + 1
        if self.not_finite >= _MOST_NOT_FINITE:
            raise VitrailError(
                f"the gradient was not finite {self.not_finite} times in a row (step {self.step}); lower lr, or train in "
                "float32."
            )
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            if not self.not_finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            # A young average follows faster, so that random initial weights are soon forgotten.
            decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list[Tensor](self.parameters), 1 - decay)

    def _save(self) -> None:
        if self.peers.rank == 0:
            checkpoint.save(self, self.note())
            self.on_save()
        self.peers.wait()


def _copy_into(parameters: Iterable[nn.Parameter], values: Iterable[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@contextmanager
def _stop_on_signal(loop: TrainingLoop[Any]) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into stop requests within the block; only the main thread receives signals."""
    loop.stop_requested = loop.stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        loop.stop_requested = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
