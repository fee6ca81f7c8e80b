"""The training loop: exact resume, learning rates, averages; Muon and its orthogonalisation; peers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from vitrail.errors import CheckpointError
from vitrail.train import checkpoint, metrics
from vitrail.train.distributed import Peers
from vitrail.train.loop import Schedule, StepResult, TrainingLoop
from vitrail.train.metrics import StepMeans
from vitrail.train.muon import Muon, orthogonalize


def _data(step: int) -> Iterator[list[Tensor]]:
    while True:
        yield [torch.randn(8, 6, generator=torch.Generator().manual_seed(step))]
        step += 1


def _train(run: TrainingLoop[Tensor]) -> bool:
    """Go on from the newest checkpoint, with a line of metrics a step."""
    run.restore()
    return run.run(StepMeans(run.folder, "run", run.schedule).add)


def _run(folder: Path, steps: int, width: int = 4, **options: object) -> TrainingLoop[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 6))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    schedule = Schedule(steps=steps, warmup=3, final=0.1, save_every=4, log_every=1, **options)  # type: ignore[arg-type]

    def loss(batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        return (model(batch) - batch).square().mean(), {"rows": float(len(batch))}

    optimizers = [Muon(matrices, lr=1e-2), AdamW(rest, lr=1e-2)]
    return TrainingLoop(model, optimizers, loss, _data, schedule, folder)


def _losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole", 12)
    assert _train(whole)
    part = _run(tmp_path / "part", 12)
    means = StepMeans(part.folder, "run", part.schedule)

    def stop(result: StepResult) -> None:
        means.add(result)
        part.stop_requested = result.step == 7

    assert not part.run(stop) and part.step == 7
    torch.manual_seed(99)  # another process would have another state
    rest = _run(tmp_path / "part", 12)
    assert _train(rest)
    assert _losses(tmp_path / "part") == _losses(tmp_path / "whole")
    for (name, a), b in zip(whole.model.named_parameters(), rest.parameters, strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(whole.average[name], rest.average[name]), name


def test_old_checkpoints_go_and_half_written_ones_are_never_seen(tmp_path: Path) -> None:
    run = _run(tmp_path, 12)
    (tmp_path / ".checkpoint-00000099.part").mkdir(parents=True)
    run.run()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-00000008",
        "checkpoint-00000012",
    ]


def test_save_half_removed_checkpoints_are_never_seen(tmp_path: Path) -> None:
    """What is removed is hidden first; what a kill left is gone after the next save, and the user's folders stay."""
    run = _run(tmp_path, 12)
    (tmp_path / "checkpoint-best").mkdir(parents=True)
    (tmp_path / ".checkpoint-notes").mkdir()
    for name in (".checkpoint-00000099.part", ".checkpoint-00000004.old"):
        (tmp_path / name).mkdir()
    run.run()
    again = _run(tmp_path, 12)
    assert again.restore()
    checkpoint.save(again, {})  # the same step once more
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        ".checkpoint-notes",
        "checkpoint-00000008",
        "checkpoint-00000012",
        "checkpoint-best",
    ]


DAMAGED: list[tuple[str, object]] = [
    ("step", 7),
    ("step", "8"),
    ("step", None),
    ("optimizers", {}),
    ("optimizers", [{"state": {}, "groups": []}] * 2),
    ("optimizers", [{"state": {"x": {}}, "groups": [{"lr": 1}]}] * 2),
    ("optimizers", [5, 5]),
    ("optimizers", None),
]


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_restore_damaged_state_is_one_sentence(tmp_path: Path, key: str, value: object) -> None:
    run = _run(tmp_path, 8)
    run.run()
    state = checkpoint.checkpoints(tmp_path)[-1] / "state.json"
    told = json.loads(state.read_text())
    state.write_text(json.dumps({**told, key: value}))
    with pytest.raises(CheckpointError, match=r"checkpoint-00000008") as caught:
        _run(tmp_path, 12).restore()
    assert "\n" not in str(caught.value)
    state.write_text(json.dumps({name: told[name] for name in told if name != key}))
    with pytest.raises(CheckpointError, match=r"checkpoint-00000008 is damaged"):
        _run(tmp_path, 12).restore()


def test_restore_state_of_other_shapes_is_refused(tmp_path: Path) -> None:
    _run(tmp_path, 4).run()
    file = checkpoint.checkpoints(tmp_path)[-1] / "optimizers.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("exp_avg"):
            save_file({**tensors, name: torch.zeros(3, 3, 3)}, file)
            with pytest.raises(CheckpointError, match=r"is damaged .*exp_avg of parameter"):
                _run(tmp_path, 8).restore()
    save_file({name: tensor for name, tensor in tensors.items() if name != "random"}, file)
    with pytest.raises(CheckpointError, match="is damaged"):
        _run(tmp_path, 8).restore()
    assert all(
        name in {path.name for path in file.parent.iterdir()} for name in ("state.json", "model.safetensors")
    )


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _train(_run(tmp_path, 4))
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        _train(_run(tmp_path, 4, width=5))


def test_a_stage_begins_from_another_with_weights_only(tmp_path: Path) -> None:
    first = _run(tmp_path / "first", 4)
    first.run()
    second = _run(tmp_path / "second", 4)
    checkpoint.begin_from(second, tmp_path / "first")
    for (name, a), b in zip(first.model.named_parameters(), second.parameters, strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(first.average[name], second.average[name]), name
    assert second.step == 0
    assert not second.optimizers[0].state
    assert checkpoint.finished(tmp_path / "first", 4)
    assert not checkpoint.finished(tmp_path / "first", 5)
    assert not checkpoint.finished(tmp_path / "second", 1)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.begin_from(second, tmp_path / "nowhere")


def test_rate_rises_then_falls_in_a_straight_line() -> None:
    schedule = Schedule(steps=100, warmup=10, final=0.0)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(50) == pytest.approx(0.5)
    assert schedule.factor(100) == pytest.approx(0.0)


def test_bf16_is_an_option_and_keeps_float32_weights(tmp_path: Path) -> None:
    run = _run(tmp_path, 3, bf16=True)
    assert _train(run)
    assert all(p.dtype == torch.float32 for p in run.parameters)
    assert all(value == value for value in _losses(tmp_path))


def test_step_means_are_those_of_the_steps_between_two_records(tmp_path: Path) -> None:
    schedule = Schedule(steps=4, warmup=0, final=0.0, log_every=2)
    seen: list[dict[str, object]] = []
    means = StepMeans(tmp_path, "words", schedule, seen.append)
    for step, loss in enumerate((1.0, 2.0, 4.0, 5.0, 9.0), 1):
        means.add(StepResult(step, loss, 1.0, loss / 2, {"rows": 8}, 0.5))
    expected = [
        {
            "run": "words",
            "step": 2,
            "rate": 0.5,
            "loss": 1.5,
            "norm": 0.75,
            "rows": 8.0,
            "seconds_per_step": 0.5,
        },
        {
            "run": "words",
            "step": 4,
            "rate": 0.0,
            "loss": 4.5,
            "norm": 2.25,
            "rows": 8.0,
            "seconds_per_step": 0.5,
        },
    ]
    assert seen == metrics.read(tmp_path) == expected


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    run = _run(tmp_path, 12)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.run()
    for name, p in run.model.named_parameters():
        assert (run.average[name] - p).norm() < (before[name] - p).norm() + 1e-6


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(*shape, generator=generator)
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.6
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert float((orthogonalize(matrix) * (u @ v)).sum()) > 0.9 * min(shape)


def test_muon_takes_matrices_only_and_moves_them_by_a_known_amount() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.zeros(3))])
    weight = nn.Parameter(torch.zeros(16, 16))
    weight.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 10
    # The first update goes along the gradient, whatever its size.
    expected = -0.1 * 0.2 * 16**0.5 * orthogonalize(weight.grad)
    Muon([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=1e-5)


def _peer(rank: int, meeting: str, folder: str) -> None:
    peers = Peers.join(rank, 2, meeting)
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), float(rank + 1))
    stop = peers.average([weight], stop=rank == 1)
    assert weight.grad is not None
    Path(folder, f"{rank}.json").write_text(json.dumps([weight.grad.tolist(), stop]))
    peers.wait()


@pytest.mark.slow
def test_peers_average_gradients_and_stop_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_peer, (f"file://{tmp_path}/meeting", str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [[1.5, 1.5, 1.5], True]


def test_a_lone_process_changes_nothing() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    assert not Peers().average([weight], stop=False)
    assert weight.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "damage", [b"3\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"[" * 100_000 + b"\n", b"\xff\xfe\n", b'{"step": 2'],
    ids=["a number", "no step", "a text", "deep", "no text", "cut off"],
)  # fmt: skip
def test_damaged_metrics_count_up_to_the_damage(damage: bytes, tmp_path: Path) -> None:
    metrics.append(tmp_path, {"step": 1})
    with (tmp_path / metrics.NAME).open("ab") as file:
        file.write(damage + b'{"step": 2}\n')
    assert metrics.read(tmp_path) == [{"step": 1}]
    assert metrics.cut(tmp_path, 5) == [{"step": 1}]


@pytest.mark.parametrize(
    ("name", "value"), [("betas", [10**30, 0.9]), ("eps", 10**30), ("weight_decay", 0.77), ("lr", 0.5)]
)
def test_restore_settings_of_the_optimiser_are_the_runs_own(tmp_path: Path, name: str, value: Any) -> None:
    _run(tmp_path, 4).run()
    state = checkpoint.checkpoints(tmp_path)[-1] / "state.json"
    told = json.loads(state.read_text())
    groups = [group for one in told["optimizers"] for group in one["groups"] if name in group]
    assert groups
    groups[0][name] = value
    state.write_text(json.dumps(told))
    run = _run(tmp_path, 8)
    if name == "lr":  # set anew by every step
        assert run.restore() and run.run()
        return
    with pytest.raises(CheckpointError, match=r"is damaged .*its optimisers have other settings"):
        run.restore()
