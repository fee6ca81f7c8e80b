"""The training loop for conversations, in plain PyTorch: one step after the other, saved so that it goes on exactly.

The model, the data and the settings come from the caller; how a checkpoint lies on disk is in state.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vitrail.errors import InputError, VitrailError
from vitrail.files.safetensors import write_safetensors
from vitrail.train import metrics, state
from vitrail.train.dataset import Dataset
from vitrail.train.loop import stop_on_signal
from vitrail.train.optimizers import make_optimizers
from vitrail.train.packing import Order, Pack, Prepare, Room, in_groups, loss_sum, mixed, pack
from vitrail.train.plot import draw_curves
from vitrail.train.rates import Rate
from vitrail.train.settings import Settings, differences

CHECKPOINTS, BEST, CURVES = "checkpoints", "best.safetensors", "curves.png"
_PATIENCE_WITH_NAN = 20  # steps in a row without a finite gradient


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. reason: "finished", "no better for a while" or "asked to stop"."""

    step: int
    reason: str
    loss: float | None = None
    eval_loss: float | None = None


class Trained:
    """The part of a model that is trained."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters, in the model's order."""
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)


class Trainer:
    """One run: what is trainable in `network` learns from `data`.

    folder       holds metrics.jsonl, curves.png and the checkpoints; a run that was there goes on, if it was the same.
    evaluation   conversations that are only looked at. prepare: makes pixels of pictures.
    identity     what else must be the same for the run to go on, such as the name of the model.
    on_step      hears every record of metrics.jsonl.

    Raises InputError for a folder with another run.
    """

    def __init__(
        self,
        network: Any,
        data: Dataset,
        folder: Path,
        settings: Settings,
        *,
        evaluation: Dataset | None = None,
        prepare: Prepare | None = None,
        lr: float = 2e-4,
        identity: Mapping[str, Any] | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.network, self.data, self.evaluation, self.prepare = network, data, evaluation, prepare
        self.root, self.folder, self.name = folder, folder / CHECKPOINTS, "train"
        self.schedule = self.settings = settings
        self.lr = settings.lr or lr
        self.on_step = on_step
        room = Room(settings.batch, settings.positions)
        self.order = Order(data.positions, room, settings.accumulate, settings.seed)
        self.steps = settings.steps or self.order.steps(settings.epochs)
        warmup = min(100, self.steps // 20) if settings.warmup is None else min(settings.warmup, self.steps)
        self.rate = Rate(self.steps, warmup, settings.schedule, settings.decay, settings.final)
        self.model = Trained(network)
        self.parameters = [p for _, p in self.model.named_parameters()]
        if not self.parameters:
            raise InputError(
                "nothing in the model is trainable; add an adapter or leave some parameters unfrozen."
            )
        self.optimizers: Sequence[Optimizer] = make_optimizers(
            network, kind=settings.optimizer, lr=self.lr, weight_decay=settings.weight_decay
        )
        self.average: dict[str, Tensor] = {}
        if settings.ema:
            self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.step = 0
        self.asked = self.stopped = False
        self.best, self.waited, self.lost = math.inf, 0, 0
        self.identity = {
            **settings.as_dict(),
            "data": data.digest,
            "evaluation": evaluation.digest if evaluation else None,
            **(identity or {}),
        }
        self.records: list[dict[str, Any]] = []

    # --- the run ------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train to the end, or until SIGINT or SIGTERM asks to stop; either way everything is saved first."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._go_on()
        if self.settings.checkpointing:
            self.network.gradient_checkpointing_enable()
        self.network.train()
        try:
            with stop_on_signal(self):
                while self.step < self.steps and not self.asked and not self._stale:
                    self._note_step(self._train_step())
                    if self.step % self.settings.save_every == 0:
                        self._save()
        finally:
            self.network.eval()
            if self.settings.checkpointing:
                self.network.gradient_checkpointing_disable()
        self._save()
        reason = "no better for a while" if self._stale else "finished"
        if self.step < self.steps and not self._stale:
            reason = "asked to stop"
        return Outcome(self.step, reason, self._last("loss"), self._last("eval_loss"))

    def _train_step(self) -> dict[str, Any]:
        """One update: all packs of the step, one loss per learned id of all of them."""
        begun = time.monotonic()
        # Dropout draws from it: a step is the same whenever it is taken.
        torch.manual_seed(mixed(self.settings.seed, self.step))
        packs = [pack([self.data[i] for i in group], self.prepare) for group in self.order.at(self.step)]
        learned = sum(len(rows.targets) for rows in packs)
        factor = self.rate.factor(self.step)
        for optimizer in self.optimizers:
            for values in optimizer.param_groups:
                values["lr"] = self.lr * factor
        loss = 0.0
        for rows in packs:
            with self._precision():
                part = loss_sum(self.network, rows) / learned
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf))
        self._update(norm)
        positions = sum(sum(rows.lengths) for rows in packs)
        seconds = time.monotonic() - begun
        return {
            "step": self.step,
            "epoch": self.order.epoch(self.step - 1),
            "loss": loss,
            "rate": self.lr * factor,
            "norm": norm,
            "learned": learned,
            "positions": positions,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(positions / max(seconds, 1e-9), 1),
        }

    def _update(self, norm: float) -> None:
        """Change the weights, unless the gradient is not finite, and the average after them."""
        self.lost = 0 if math.isfinite(norm) else self.lost + 1
        if self.lost >= _PATIENCE_WITH_NAN:
            raise VitrailError(
                f"the gradient was not finite {self.lost} times in a row (step {self.step}); lower lr, or train in float32."
            )
        for optimizer in self.optimizers:
            if not self.lost:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            # A young average follows faster, so that the start is soon forgotten.
            decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list[Tensor](self.parameters), 1 - decay)

    def _note_step(self, record: dict[str, Any]) -> None:
        if self.evaluation is not None and self._is_time_to_evaluate():
            record["eval_loss"] = self.evaluate()
            self._compare(record["eval_loss"])
        self.records.append(record)
        metrics.append(self.root, record)
        if self.on_step is not None:
            self.on_step(record)

    # --- evaluation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss per learned id of the evaluation conversations, with the weights that would be saved."""
        if self.evaluation is None:
            raise InputError("there are no conversations to evaluate with.")
        room = Room(self.settings.batch, self.settings.positions)
        groups = in_groups(range(len(self.evaluation)), self.evaluation.positions, room)
        packs: Iterator[Pack] = (pack([self.evaluation[i] for i in group], self.prepare) for group in groups)
        total, learned = 0.0, 0
        self.network.eval()
        with self._averaged():
            for rows in packs:
                with self._precision():
                    total += float(loss_sum(self.network, rows))
                learned += len(rows.targets)
        self.network.train()
        return total / learned

    def _is_time_to_evaluate(self) -> bool:
        every = self.settings.eval_every
        if self.step == self.steps:
            return True
        if every is not None:
            return self.step % every == 0
        return self.order.epoch(self.step) != self.order.epoch(self.step - 1)

    def _compare(self, loss: float) -> None:
        """Count evaluations without a better loss; keep the best weights where that ends the run."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            if self.settings.patience is not None:
                with self._averaged():
                    self._write_best()
        else:
            self.waited += 1

    @property
    def _stale(self) -> bool:
        return self.settings.patience is not None and self.waited >= self.settings.patience

    def _write_best(self) -> None:
        part = self.root / f".{BEST}.part"
        part.unlink(missing_ok=True)
        write_safetensors(part, {name: p.detach() for name, p in self.model.named_parameters()})
        os.replace(part, self.root / BEST)

    @torch.no_grad()
    def settle(self) -> None:
        """Give the model the weights that the run is for: the best ones with `patience`, else the average, if any."""
        best = self.root / BEST
        chosen: Mapping[str, Tensor] = self.average
        if self.settings.patience is not None and best.is_file():
            chosen = load_file(best)
        for name, parameter in self.model.named_parameters():
            if name in chosen:
                parameter.copy_(chosen[name])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        if not self.average:
            yield
            return
        with torch.no_grad():
            own = [p.detach().clone() for p in self.parameters]
            for parameter, value in zip(self.parameters, self.average.values(), strict=True):
                parameter.copy_(value)
            try:
                yield
            finally:
                for parameter, value in zip(self.parameters, own, strict=True):
                    parameter.copy_(value)

    def _precision(self) -> torch.autocast:
        device = self.parameters[0].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16")

    # --- on disk ------------------------------------------------------------------------------------------

    @property
    def note(self) -> dict[str, Any]:
        """What a checkpoint says beside the weights."""
        best = self.best if math.isfinite(self.best) else None
        return {"run": self.identity, "best": best, "waited": self.waited, "lost": self.lost}

    def _go_on(self) -> None:
        """Take up the run that the folder holds, at its newest checkpoint."""
        before = state.read_note(self.folder)
        if before:
            if changed := differences(before.get("run", {}), self.identity):
                raise InputError(
                    f"{self.root} holds another run: {'; '.join(changed)}. Choose another folder, or go on with "
                    "the same settings."
                )
            state.restore(self)
            self.average = {
                name: self.average[name].to(p.device)
                for name, p in self.model.named_parameters()
                if self.average
            }
            self.best = math.inf if before["best"] is None else float(before["best"])
            self.waited, self.lost = int(before["waited"]), int(before["lost"])
        self.records = metrics.cut(self.root, self.step)

    def _save(self) -> None:
        state.save(self)
        draw_curves(self.records, self.root / CURVES, f"{self.root.name}: {self.step} of {self.steps} steps")

    def _last(self, key: str) -> float | None:
        return next((float(record[key]) for record in reversed(self.records) if key in record), None)
