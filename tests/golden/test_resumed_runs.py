"""Training runs that 0.1.0 began go on: their files are read, and each step that follows is 0.1.0's.

data/training holds two folders as 0.1.0 left them, and the records that 0.1.0 wrote when the same runs were not
interrupted: `stage` (the reader's loop, stopped after step 6 of 12) and `train` (the trainer of `vitrail train`, killed
after step 5 of 8, its newest checkpoint at step 4). They were made with 0.1.0's `Run` and `Trainer`, by what stands below.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tests import tiny
from vitrail import LoraConfig
from vitrail.train import metrics
from vitrail.train.checkpoint import checkpoints
from vitrail.train.examples import Example
from vitrail.train.loop import Schedule, TrainingLoop
from vitrail.train.metrics import StepMeans
from vitrail.train.muon import Muon
from vitrail.train.settings import Settings
from vitrail.train.trainer import CHECKPOINTS, Trainer

DATA = tiny.DATA / "training"
EXPECTED = json.loads((DATA / "expected.json").read_text())
TENSORS = ("model.safetensors", "average.safetensors", "optimizers.safetensors")


def rows(step: int) -> Iterator[list[Tensor]]:
    while True:
        yield [torch.rand(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)]
        step += 1


def stage(folder: Path) -> TrainingLoop[Tensor]:
    """A run in float64, so that the order of sums, which processors differ in, does not show."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape, dtype=torch.float64) - 0.5)

    def loss(batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        noise = torch.rand(batch.shape, dtype=torch.float64)
        return (model(batch * (noise < 0.8)) - batch).square().mean(), {"rows": float(len(batch))}

    optimizers = [
        Muon([p for p in model.parameters() if p.ndim == 2], lr=1e-2),
        AdamW([p for p in model.parameters() if p.ndim < 2], lr=1e-2),
    ]
    schedule = Schedule(steps=12, warmup=3, final=0.1, save_every=4, log_every=1, ema=0.9, keep=1)
    return TrainingLoop(model, optimizers, loss, rows, schedule, folder, name="words")


class Talks(list[Example]):
    """Examples that need no tokenizer."""

    digest = "six conversations"

    @property
    def positions(self) -> array[int]:
        return array("q", (len(example.ids) for example in self))


def talks(count: int = 6) -> Any:
    made = Talks()
    for n in range(count):
        ids = [1, *range(20 + n, 26 + 2 * n), 2]
        made.append(Example(ids, [-100] * 3 + ids[3:]))
    return made


def trainer(folder: Path) -> Trainer:
    model = tiny.model("llava")
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_((torch.rand(p.shape) - 0.5) / 8)
    settings = Settings(
        steps=8, batch=2, accumulate=2, lr=1e-2, warmup=2, ema=0.9, save_every=2, keep=1, eval_every=3, patience=4,
        optimizer="muon", schedule="cosine",
    )  # fmt: skip
    return Trainer(model, talks(), folder, settings, evaluation=talks(2))


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(DATA / name, folder / name))


def test_stage_of_0_1_0_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    run = stage(copied("stage", tmp_path))
    assert run.restore() and run.step == 6
    assert run.run(StepMeans(run.folder, "words", run.schedule).add)
    found = metrics.read(run.folder)
    assert [record["step"] for record in found] == [7, 8, 9, 10, 11, 12]
    for record, expected in zip(found, EXPECTED["stage"][6:], strict=True):
        assert {key: record[key] for key in expected} == pytest.approx(expected, rel=1e-12)


def test_train_of_0_1_0_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    folder = copied("train", tmp_path)
    run = trainer(folder)
    outcome = run.run()
    assert (outcome.step, outcome.reason) == (8, "finished")
    found = metrics.read(folder)
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6, 7, 8]  # step 5 was taken back
    for record, expected in zip(found, EXPECTED["train"], strict=True):
        assert set(record) == {*expected, "seconds", "tokens_per_second"}
        assert {key: record[key] for key in expected} == pytest.approx(expected, rel=1e-4)  # float32


def test_checkpoints_of_0_1_0_are_written_again_to_the_byte(tmp_path: Path) -> None:
    """Loaded and saved: nothing that a run needs is lost, and 0.1.0 can read what is written."""
    begun = stage(copied("stage", tmp_path))
    begun.restore()
    begun.schedule = Schedule(steps=6, keep=1)  # nothing is left to do but to save
    assert begun.run()
    resumed = trainer(copied("train", tmp_path))
    resumed.resume()
    resumed.loop.stopped = True
    resumed.loop._save()
    for name, folder in (("stage", begun.folder), (f"train/{CHECKPOINTS}", resumed.loop.folder)):
        (expected,), (found,) = checkpoints(DATA / name), checkpoints(folder)
        assert found.name == expected.name
        for file in TENSORS:
            assert (found / file).read_bytes() == (expected / file).read_bytes(), file
        assert json.loads((found / "state.json").read_text()) == json.loads(
            (expected / "state.json").read_text()
        )
