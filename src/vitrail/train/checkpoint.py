"""Checkpoints of a run: weights, moving average, optimizers, random state and step, in safetensors and JSON; no pickle."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from vitrail.errors import CheckpointError, VitrailError
from vitrail.files.json import JSON_LIMIT, read_json
from vitrail.files.safetensors import SafetensorsFile, write_safetensors
from vitrail.files.writing import writing

_NAME = "checkpoint-"
_COMPLETE = re.compile(r"checkpoint-\d{8,18}", re.ASCII)
_LEFT = re.compile(r"\.checkpoint-\d{8,18}\.(part|old)", re.ASCII)  # remains of an interrupted save


class Named(Protocol):
    """A module, or its trained part."""

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield names and parameters."""


class Kept(Protocol):
    """Schedule with the number of checkpoints to keep."""

    @property
    def keep(self) -> int:
        """Number of checkpoints to keep."""


class Resumable(Protocol):
    """The parts of a run that are saved."""

    @property
    def schedule(self) -> Kept:
        """Schedule with the number of checkpoints to keep."""

    model: Named
    optimizers: Sequence[Optimizer]
    folder: Path
    name: str
    step: int
    average: dict[str, Tensor]


def save(run: Resumable, note: Mapping[str, Any]) -> Path:
    """Write everything needed to resume a run exactly, and remove old checkpoints.

    The folder appears only when complete.

    Args:
        run: to save.
        note: further values to save as JSON; `read_note` returns them.

    Returns:
        The checkpoint's folder.
    """
    final = run.folder / f"{_NAME}{run.step:08d}"
    part = run.folder / f".{final.name}.part"
    _remove_left(run.folder)
    try:
        with writing(run.folder):
            _write(run, note, part)
            _set_aside(final)
            part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # the disk may be full
        raise
    for old in checkpoints(run.folder)[: -run.schedule.keep]:
        _set_aside(old)
    _remove_left(run.folder)
    return final


def _set_aside(folder: Path) -> None:
    """Rename a checkpoint before removing it, so that a half-removed one is never used."""
    if folder.is_dir():
        folder.rename(folder.with_name(f".{folder.name}.old"))


def _remove_left(folder: Path) -> None:
    for path in folder.glob(f".{_NAME}*"):
        if _LEFT.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _write(run: Resumable, note: Mapping[str, Any], part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_safetensors(part / "model.safetensors", dict(run.model.named_parameters()), metadata=None)
    write_safetensors(part / "average.safetensors", run.average, metadata=None)
    plain: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for index, optimizer in enumerate(run.optimizers):
        plain.append(_split(optimizer, f"{index}", tensors))
    write_safetensors(part / "optimizers.safetensors", tensors, metadata=None)
    state = {"name": run.name, "step": run.step, "optimizers": plain, "note": note}
    (part / "state.json").write_text(json.dumps(state), encoding="utf-8")


def restore(run: Resumable) -> bool:
    """Restore a run from the newest checkpoint in its folder; return False if there is none.

    Raises:
        CheckpointError: the checkpoint is of another model or other optimizers.
    """
    found = checkpoints(run.folder)
    if not found:
        return False
    folder = found[-1]
    with undamaged(folder):
        _restore(run, folder)
    return True


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """Convert any error from a damaged checkpoint to a CheckpointError within the block."""
    try:
        yield
    except VitrailError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({type(error).__name__}: {str(error)[:200]}); remove it, and the run goes on from the "
            "checkpoint before it."
        ) from error


def _restore(run: Resumable, folder: Path) -> None:
    note = read_json(folder / "state.json", limit=JSON_LIMIT)
    if note["step"] != int(folder.name.removeprefix(_NAME)):
        raise ValueError(f"its state is of step {str(note['step'])[:40]}")
    load_weights(run.model, _read(folder / "model.safetensors"), folder)
    average = _read(folder / "average.safetensors")
    run.average = {
        name: average[name].to(p.device) for name, p in run.model.named_parameters() if name in average
    }
    tensors = _read(folder / "optimizers.safetensors")
    if len(note["optimizers"]) != len(run.optimizers):
        raise CheckpointError(
            f"{folder}: {len(note['optimizers'])} optimisers, expected {len(run.optimizers)}."
        )
    for index, (optimizer, plain) in enumerate(zip(run.optimizers, note["optimizers"], strict=True)):
        _join(optimizer, f"{index}", plain, tensors)
    torch.set_rng_state(tensors["random"])
    run.step = int(note["step"])


def begin_from(run: Resumable, folder: Path) -> None:
    """Load the weights and their average from another run's newest checkpoint; optimizers and step start anew.

    Parameters that the other run did not have keep their initial values.
    """
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint to begin from.")
    for name, target in (("model", dict(run.model.named_parameters())), ("average", run.average)):
        tensors = _read(found[-1] / f"{name}.safetensors")
        with torch.no_grad(), undamaged(found[-1]):
            for key in sorted(set(tensors) & set(target)):
                target[key].copy_(tensors[key])


def finished(folder: Path, steps: int) -> bool:
    """Return whether a run's newest checkpoint is at `steps` steps or more."""
    return steps_done(folder) >= steps


def steps_done(folder: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 if there is none."""
    found = checkpoints(folder)
    return int(found[-1].name.removeprefix(_NAME)) if found else 0


def read_note(folder: Path) -> dict[str, Any]:
    """Return the note of a run's newest checkpoint; empty if there is none."""
    found = checkpoints(folder)
    if not found:
        return {}
    with undamaged(found[-1]):
        return dict(read_json(found[-1] / "state.json", limit=JSON_LIMIT)["note"])


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob(_NAME + "*") if _COMPLETE.fullmatch(path.name))


@torch.no_grad()
def load_weights(model: Named, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Copy tensors to the parameters with the same names.

    Raises:
        CheckpointError: names or shapes differ.
    """
    parameters = dict(model.named_parameters())
    wrong = sorted(set(parameters) ^ set(tensors))
    wrong += [n for n, p in parameters.items() if n in tensors and tensors[n].shape != p.shape]
    if wrong:
        raise CheckpointError(
            f"{origin}: these tensors are missing, unknown or of another shape: {', '.join(wrong)}"
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _read(path: Path) -> dict[str, Tensor]:
    file = SafetensorsFile(path)
    return {name: file.copied(name) for name in file}


def _split(optimizer: Optimizer, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move an optimizer's tensors to `tensors`; return the rest, which is plain JSON."""
    whole = optimizer.state_dict()
    plain: dict[str, Any] = {}
    for index, entry in whole["state"].items():
        plain[str(index)] = {key: value for key, value in entry.items() if not isinstance(value, Tensor)}
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{key}"] = value
    return {"state": plain, "groups": whole["param_groups"]}


def _alike(own: Any, given: Any) -> bool:
    """Return whether two JSON values have the same keys and types of values."""
    if isinstance(own, Mapping):
        return (
            isinstance(given, Mapping)
            and own.keys() == given.keys()
            and all(_alike(own[k], given[k]) for k in own)
        )
    if isinstance(own, (list, tuple)):
        return isinstance(given, list) and len(own) == len(given) and all(map(_alike, own, given))
    if isinstance(own, float) and not isinstance(own, bool):
        return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
    return type(own) is type(given)


def _same_settings(own: Any, given: Any) -> bool:
    """Whether groups of parameters have the same settings but for the rate, which every step sets anew."""
    own = json.loads(json.dumps(own))  # where tuples are lists
    return all({**mine, "lr": 0} == {**other, "lr": 0} for mine, other in zip(own, given, strict=True))


def _join(optimizer: Optimizer, prefix: str, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in plain["state"].items()}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == prefix:
            entries.setdefault(int(parts[1]), {})[parts[2]] = tensor
    own = optimizer.state_dict()["param_groups"]
    if not _alike(own, plain["groups"]) or not _same_settings(own, plain["groups"]):
        raise ValueError("its optimisers have other settings")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in entries.items():
        if wrong := [
            key
            for key, value in entry.items()
            if not isinstance(value, Tensor) or (value.dim() and value.shape != parameters[index].shape)
        ]:
            raise ValueError(f"{', '.join(wrong)} of parameter {index} does not fit")
    optimizer.load_state_dict({"state": entries, "param_groups": plain["groups"]})
