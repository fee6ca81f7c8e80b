"""The training loop over conversations: exact resume, losses per id, averages, early ends, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitrail
from tests import tiny
from vitrail import LoraConfig
from vitrail.adapters.layers import Lora
from vitrail.errors import InputError, VitrailError
from vitrail.train import checkpoint, metrics
from vitrail.train.dataset import Dataset, open_dataset
from vitrail.train.lr_schedule import LrSchedule
from vitrail.train.muon import Muon
from vitrail.train.optimizers import make_optimizers
from vitrail.train.packing import loss_sum, pack
from vitrail.train.plot import draw_curves
from vitrail.train.settings import Settings, differences
from vitrail.train.setup import open_inputs
from vitrail.train.trainer import BEST, CHECKPOINTS, Trainer

WORDS = ["red", "green", "blue", "a dog", "a hill", "two birds", "nothing"]


@pytest.fixture(scope="module")
def data(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Seven conversations of different lengths, two of them with images."""
    folder = tmp_path_factory.mktemp("talks")
    tiny.image(16, 24).save(folder / "a.png")
    lines = []
    for number, word in enumerate(WORDS):
        content: list[dict[str, Any]] = [{"type": "text", "text": "What" + " is it" * number}]
        if number % 3 == 0:
            content.insert(0, {"type": "image", "path": "a.png"})
        lines.append([{"role": "user", "content": content}, {"role": "assistant", "content": word}])
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_dataset(folder / "data.jsonl", open_inputs(tiny_llava).examples(4096))


@pytest.fixture(scope="module")
def prepare(tiny_llava: Path) -> Any:
    return open_inputs(tiny_llava).prepare


def network(dropout: float = 0.1) -> Any:
    model = tiny.model("llava")
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "linear_1"], lora_dropout=dropout))
    return model


SETTINGS = Settings(steps=6, batch=2, accumulate=2, lr=1e-2, warmup=2, ema=0.9, save_every=2, eval_every=3)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics.read(folder)]


class Killed(Exception):
    """Stands for a process that was killed."""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    optimizer: Any, data: Dataset, prepare: Any, tmp_path: Path
) -> None:
    """Same losses and weights, with dropout, averages and evaluation; killed between two checkpoints."""
    settings = Settings(**{**SETTINGS.as_dict(), "optimizer": optimizer})

    def trainer(folder: Path, on_step: Any = None) -> Trainer:
        return Trainer(
            network(), data, folder, settings, evaluation=data.part([0, 1]), prepare=prepare, on_step=on_step
        )

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise Killed

    whole = trainer(tmp_path / "whole")
    assert whole.run().reason == "finished"
    with pytest.raises(Killed):
        trainer(tmp_path / "part", kill).run()
    assert len(losses(tmp_path / "part")) == 5
    torch.manual_seed(99)  # another process has another state
    rest = trainer(tmp_path / "part")
    outcome = rest.run()
    assert outcome.step == 6 and losses(tmp_path / "part") == losses(tmp_path / "whole")
    found = [record.get("eval_loss") for record in metrics.read(tmp_path / "part")]
    assert found == [record.get("eval_loss") for record in metrics.read(tmp_path / "whole")]
    assert [value is not None for value in found] == [False, False, True, False, False, True]
    expected = weights(whole)
    for name, value in weights(rest).items():
        assert torch.equal(value, expected[name]), name
        assert torch.equal(rest.loop.average[name], whole.loop.average[name]), name


def test_a_step_has_one_loss_per_learned_id_however_it_is_packed(
    data: Dataset, prepare: Any, tmp_path: Path
) -> None:
    found = []
    for batch, accumulate in ((7, 1), (2, 4), (1, 7)):
        model = network(0.0)
        settings = Settings(steps=1, batch=batch, accumulate=accumulate, warmup=0, optimizer="muon")
        trainer = Trainer(model, data, tmp_path / str(batch), settings, prepare=prepare)
        found.append((trainer.run().loss, weights(trainer)))
    model = network(0.0)
    alone = [loss_sum(model, pack([data[i]], prepare)).detach() for i in range(len(data))]
    assert found[0][0] == pytest.approx(float(sum(alone)) / sum(data.learned), rel=1e-5)
    for loss, changed in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, value in changed.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-3, atol=1e-5)


def test_it_ends_early_and_keeps_the_best(data: Dataset, prepare: Any, tmp_path: Path) -> None:
    settings = Settings(steps=50, batch=7, lr=0.5, warmup=0, eval_every=1, patience=2, clip=0.0)
    model = network(0.0)
    trainer = Trainer(
        model, data.part([0, 1]), tmp_path, settings, evaluation=data.part([4, 5]), prepare=prepare
    )
    outcome = trainer.run()
    assert outcome.reason == "no better for a while" and outcome.step < 50
    seen = [record["eval_loss"] for record in metrics.read(tmp_path)]
    assert trainer.best == min(seen) and seen.index(min(seen)) == len(seen) - 3
    assert (tmp_path / BEST).is_file()
    trainer.settle()
    assert trainer.evaluate() == pytest.approx(min(seen), rel=1e-6)
    again = Trainer(
        network(0.0), data.part([0, 1]), tmp_path, settings, evaluation=data.part([4, 5]), prepare=prepare
    )
    assert again.run().step == outcome.step  # nothing is left to do


def test_asking_to_stop_saves_first(data: Dataset, prepare: Any, tmp_path: Path) -> None:
    def stop(record: dict[str, Any]) -> None:
        trainer.loop.stop_requested = record["step"] == 3

    trainer = Trainer(network(), data, tmp_path, SETTINGS, evaluation=data, prepare=prepare, on_step=stop)
    assert trainer.run().reason == "asked to stop"
    assert [path.name for path in checkpoint.checkpoints(tmp_path / CHECKPOINTS)] == [
        "checkpoint-00000002",
        "checkpoint-00000003",
    ]
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.size == (960, 640)


def test_run_with_more_steps_goes_on_from_the_last_and_fewer_are_refused(
    data: Dataset, prepare: Any, tmp_path: Path
) -> None:
    def trainer(steps: int) -> Trainer:
        settings = Settings(steps=steps, batch=2, lr=1e-2, warmup=0, decay=0.0)
        return Trainer(network(), data, tmp_path, settings, prepare=prepare)

    trainer(2).run()
    before = losses(tmp_path)
    longer = trainer(4)
    outcome = longer.run()
    assert (outcome.step, outcome.reason, longer.begun) == (4, "finished", 2)
    assert losses(tmp_path)[:2] == before and len(losses(tmp_path)) == 4
    whole = Trainer(
        network(), data, tmp_path / "whole", longer.settings, prepare=prepare
    )  # the rate is constant, so that it is the same run
    whole.run()
    assert losses(tmp_path / "whole") == losses(tmp_path)
    with pytest.raises(InputError, match=r"has taken 4 steps already; give more than these, not 3"):
        trainer(3).run()
    assert len(losses(tmp_path)) == 4


def test_another_run_in_the_folder_is_told(data: Dataset, prepare: Any, tmp_path: Path) -> None:
    settings = Settings(steps=1, batch=1)
    Trainer(network(), data, tmp_path, settings, prepare=prepare).run()
    other = Settings(steps=1, batch=1, lr=1.0)
    with pytest.raises(InputError, match=r"holds another run: lr 1.0, was None"):
        Trainer(network(), data, tmp_path, other, prepare=prepare).run()


def test_gradients_that_are_not_finite_change_nothing_and_end_the_run(
    data: Dataset, prepare: Any, tmp_path: Path
) -> None:
    model = network(0.0)
    model.get_submodule("model.multi_modal_projector.linear_2").weight.data[0, 0] = math.nan
    trainer = Trainer(model, data.part([0]), tmp_path, Settings(steps=30), prepare=prepare)
    before = weights(trainer)
    with pytest.raises(VitrailError, match="not finite 20 times"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


@pytest.mark.slow
def test_bf16_and_checkpointing_are_close_to_plain(data: Dataset, prepare: Any, tmp_path: Path) -> None:
    found = {}
    for name, options in (("plain", {}), ("again", {"checkpointing": True}), ("half", {"precision": "bf16"})):
        settings = Settings(steps=2, batch=7, lr=1e-2, warmup=0, **options)  # type: ignore[arg-type]
        Trainer(network(0.0), data, tmp_path / name, settings, prepare=prepare).run()
        found[name] = losses(tmp_path / name)
    assert found["again"] == found["plain"]
    assert found["half"] == pytest.approx(found["plain"], rel=0.02) and found["half"] != found["plain"]


def test_who_is_updated_by_what() -> None:
    model = tiny.model("llava")
    matrices = make_optimizers(model, kind="muon", lr=1.0, weight_decay=0.1)
    assert isinstance(matrices[0], Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    muon = {names[id(p)] for group in matrices[0].param_groups for p in group["params"]}
    adamw = {
        names[id(p)]: group["weight_decay"] for group in matrices[1].param_groups for p in group["params"]
    }
    assert muon.isdisjoint(adamw) and len(muon) + len(adamw) == len(names)
    assert {
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.vision_tower.patch_conv.weight",
    } <= set(adamw)
    assert all(
        decay == (0.0 if "norm" in name or "ln_pre" in name or "bias" in name else 0.1)
        for name, decay in adamw.items()
    )
    tables = vitrail.MistralForCausalLM.from_pretrained(tiny.DATA / "peft" / "base")
    tables.add_adapter(LoraConfig(target_modules=["embed_tokens", "q_proj"], r=2))
    made = make_optimizers(tables, kind="muon", lr=1.0, weight_decay=0.0)
    assert len(made[0].param_groups[0]["params"]) == 2 * sum(isinstance(m, Lora) for m in tables.modules())


def test_rates() -> None:
    constant = LrSchedule(100, 10, "constant", 0.2, 0.1)
    assert [constant.factor(s) for s in (0, 9, 10, 79, 80)] == [0.1, 1.0, 1.0, 1.0, 1.0]
    assert constant.factor(90) == pytest.approx(0.55) and constant.factor(100) == pytest.approx(0.1)
    cosine = LrSchedule(110, 10, "cosine", final=0.0)
    assert cosine.factor(10) == 1.0 and cosine.factor(60) == pytest.approx(0.5) and cosine.factor(110) == 0.0
    assert all(LrSchedule(1, 0, kind).factor(0) == 1.0 for kind in ("constant", "cosine"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"lr": -1.0},
        {"ema": 1.0},
        {"schedule": "square"},
        {"steps": 1.5},
        {"patience": 0},
        {"clip": True},
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
        Settings(**wrong)


def test_curves_of_anything(tmp_path: Path) -> None:
    for records in (
        [],
        [{"step": 1, "loss": math.nan}],
        [{"step": 1, "loss": 2.0, "rate": 0.1, "eval_loss": 2.0}],
    ):
        draw_curves(records, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as curves:
        assert len(curves.convert("RGB").getcolors(100_000) or []) > 4


def test_metrics_lines_beyond_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        metrics.append(tmp_path, {"step": step})
    with (tmp_path / metrics.NAME).open("a") as file:
        file.write('{"step": 4, "lo')
    assert metrics.cut(tmp_path, 2) == metrics.read(tmp_path) == [{"step": 1}, {"step": 2}]


def test_differences_name_the_value_and_no_whole_dict() -> None:
    before = {"seed": 0, "data": "a1", "lora": {"r": 4, "lora_alpha": 8}, "patience": 1, "steps": 3}
    assert differences(before, {**before, "steps": 9, "patience": 3}) == []
    now = {**before, "data": "b2", "lora": {"r": 2, "lora_alpha": 8}, "patience": None}
    assert differences(before, now) == ["other data", "lora r 2, was 4", "patience None, was 1"]
    assert differences(before, {**before, "lora": None}) == ["lora, which only the earlier one has"]
