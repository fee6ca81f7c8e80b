"""Trainer: training of conversations with TrainingLoop: packing, evaluation, early stopping, metrics and curves.

Steps are in loop.py. The caller provides model, data and settings.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.files.safetensors import write_safetensors
from vitrail.files.writing import writing
from vitrail.train import checkpoint, metrics
from vitrail.train.dataset import Dataset
from vitrail.train.loop import Schedule, StepResult, TrainingLoop
from vitrail.train.optimizers import make_optimizers
from vitrail.train.packing import Order, Pack, Prepare, Room, in_groups, loss_sum, mixed, pack
from vitrail.train.plot import draw_curves
from vitrail.train.settings import Settings, differences

CHECKPOINTS, BEST, CURVES = "checkpoints", "best.safetensors", "curves.png"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a run. reason: "finished", "no better for a while" or "asked to stop"."""

    step: int
    reason: str
    loss: float | None = None
    eval_loss: float | None = None


class Trained:
    """The trained part of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters, in the model's order."""
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)


class Trainer:
    """One run: trains the trainable parameters of `network` on `data`.

    Args:
        folder: holds metrics.jsonl, curves.png and the checkpoints; a run found in it is resumed.
        evaluation: conversations used only for the evaluation loss.
        prepare: converts images to pixel values.
        identity: further values that must be equal to resume a run, such as the name of the model.
        on_step: called with every record of metrics.jsonl.

    Raises:
        InputError: the folder holds another run.
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
        self.root, self.settings, self.lr, self.on_step = folder, settings, settings.lr or lr, on_step
        self.room = Room(settings.batch, settings.positions)
        self.order = Order(data.positions, self.room, settings.accumulate, settings.seed)
        self.steps = settings.steps or self.order.steps(settings.epochs)
        self.model = Trained(network)
        if not any(True for _ in self.model.named_parameters()):
            raise InputError(
                "nothing in the model is trainable; add an adapter or leave some parameters unfrozen."
            )
        optimizers = make_optimizers(
            network, kind=settings.optimizer, lr=self.lr, weight_decay=settings.weight_decay
        )
        self.loop = TrainingLoop(
            self.model, optimizers, self._loss, self._batches, self._schedule(), folder / CHECKPOINTS,
            name="train", note=self._note, on_save=self._draw,
        )  # fmt: skip
        self.best, self.waited = math.inf, 0
        self.identity = {
            **settings.as_dict(),
            "data": data.digest,
            "evaluation": evaluation.digest if evaluation else None,
            **(identity or {}),
        }
        self.records: list[dict[str, Any]] = []
        self.begun: int | None = None  # step at which the run resumed, once resume() was called

    # --- the run ------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train to the end, or until SIGINT or SIGTERM requests a stop; save a checkpoint either way."""
        self.resume()
        if self.settings.checkpointing:
            self.network.gradient_checkpointing_enable()
        self.network.train()
        try:
            if not self._stale:
                self.loop.run(self._after_step)
        finally:
            self.network.eval()
            if self.settings.checkpointing:
                self.network.gradient_checkpointing_disable()
        reason = "finished" if self.loop.step >= self.steps else "asked to stop"
        if self._stale:
            reason = "no better for a while"
        return Outcome(self.loop.step, reason, self._last("loss"), self._last("eval_loss"))

    def _schedule(self) -> Schedule:
        given = self.settings
        warmup = min(100, self.steps // 20) if given.warmup is None else min(given.warmup, self.steps)
        return Schedule(
            self.steps, warmup, given.schedule, given.decay, given.final, clip=given.clip, ema=given.ema,
            save_every=given.save_every, keep=given.keep, bf16=given.precision == "bf16",
        )  # fmt: skip

    def _batches(self, first: int) -> Iterator[list[tuple[Pack, int]]]:
        """Yield the packs of each step, each with the number of target ids of its step."""
        for step in itertools.count(first):
            # Dropout uses it: a step is the same whenever it is run.
            torch.manual_seed(mixed(self.settings.seed, step))
            packs = [pack([self.data[i] for i in group], self.prepare) for group in self.order.at(step)]
            learned = sum(len(rows.targets) for rows in packs)
            yield [(rows, learned) for rows in packs]

    def _loss(self, micro_batch: tuple[Pack, int]) -> tuple[Tensor, dict[str, float]]:
        rows, learned = micro_batch
        figures: dict[str, float] = {"learned": len(rows.targets), "positions": sum(rows.lengths)}
        return loss_sum(self.network, rows) / learned, figures

    def _after_step(self, result: StepResult) -> None:
        """Evaluate when due, and write the step's record."""
        record: dict[str, Any] = {
            "step": result.step,
            "epoch": self.order.epoch(result.step - 1),
            "loss": result.loss,
            "rate": self.lr * result.rate,
            "norm": result.norm,
            **result.figures,
            "seconds": round(result.seconds, 4),
            "tokens_per_second": round(result.figures["positions"] / max(result.seconds, 1e-9), 1),
        }
        if self.evaluation is not None and self._is_time_to_evaluate(result.step):
            record["eval_loss"] = self.evaluate()
            self._compare(record["eval_loss"])
        self.records.append(record)
        metrics.append(self.root, record)
        if self.on_step is not None:
            self.on_step(record)
        self.loop.stopped |= self._stale

    # --- evaluation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss per target id of the evaluation conversations, with the weights to be saved."""
        if self.evaluation is None:
            raise InputError("there are no conversations to evaluate with.")
        groups = in_groups(range(len(self.evaluation)), self.evaluation.positions, self.room)
        packs: Iterator[Pack] = (pack([self.evaluation[i] for i in group], self.prepare) for group in groups)
        total, learned = 0.0, 0
        self.network.eval()
        with self.loop.averaged_weights():
            for rows in packs:
                with self.loop.autocast():
                    total += float(loss_sum(self.network, rows))
                learned += len(rows.targets)
        self.network.train()
        return total / learned

    def _is_time_to_evaluate(self, step: int) -> bool:
        every = self.settings.eval_every
        if step == self.steps:
            return True
        if every is not None:
            return step % every == 0
        return self.order.epoch(step) != self.order.epoch(step - 1)

    def _compare(self, loss: float) -> None:
        """Count evaluations without improvement; keep the best weights if that can end the run."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            if self.settings.patience is not None:
                with self.loop.averaged_weights():
                    self._write_best()
        else:
            self.waited += 1

    @property
    def _stale(self) -> bool:
        return self.settings.patience is not None and self.waited >= self.settings.patience

    def _write_best(self) -> None:
        part = self.root / f".{BEST}.part"
        with writing(self.root):
            part.unlink(missing_ok=True)
            write_safetensors(part, {name: p.detach() for name, p in self.model.named_parameters()})
            os.replace(part, self.root / BEST)

    @torch.no_grad()
    def settle(self) -> None:
        """Load the final weights into the model: the best ones with `patience`, else the average, if any."""
        best = self.root / BEST
        chosen: Mapping[str, Tensor] = self.loop.average
        if self.settings.patience is not None and best.is_file():
            chosen = load_file(best)
        for name, parameter in self.model.named_parameters():
            if name in chosen:
                parameter.copy_(chosen[name])

    # --- on disk ------------------------------------------------------------------------------------------

    def _note(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides the loop's state."""
        best = self.best if math.isfinite(self.best) else None
        return {"run": self.identity, "best": best, "waited": self.waited, "lost": self.loop.not_finite}

    def resume(self) -> None:
        """Load the newest checkpoint of the run in the folder, if any; `run` does so if it was not called before.

        With a different number of steps the learning rate continues on the new schedule. Raises InputError for another run,
        and for one that has already taken more steps.
        """
        if self.begun is not None:
            return
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        before = checkpoint.read_note(self.loop.folder)
        if before:
            with checkpoint.undamaged(self.loop.folder):
                changed = differences(before["run"], self.identity)
                self.best = math.inf if before["best"] is None else float(before["best"])
                self.waited, self.loop.not_finite = int(before["waited"]), int(before["lost"])
            if changed:
                raise InputError(
                    f"{self.root} holds another run: {'; '.join(changed)}. Choose another folder, or go on with "
                    "the same settings."
                )
            if (done := checkpoint.steps_done(self.loop.folder)) > self.steps:
                raise InputError(
                    f"{self.root} holds a run that has taken {done} steps already; give more than these, not {self.steps}."
                )
            self.loop.restore()
        self.begun = self.loop.step
        with writing(self.root):
            self.records = metrics.cut(self.root, self.loop.step)

    def _draw(self) -> None:
        title = f"{self.root.name}: {self.loop.step} of {self.steps} steps"
        with writing(self.root):
            draw_curves(self.records, self.root / CURVES, title)

    def _last(self, key: str) -> float | None:
        return next((float(record[key]) for record in reversed(self.records) if key in record), None)
