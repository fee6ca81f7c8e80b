"""The folder of an unfinished `vitrail train` run, recognised by its files. Reads no content."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vitrail.errors import CheckpointError
from vitrail.files.layout import ADAPTER_CONFIG, CONFIG_NAME, PARAMS_NAME

CHECKPOINTS: Final = "checkpoints"  # the resume points of a run
METRICS: Final = "metrics.jsonl"
MERGED: Final = "merged"
_RESULTS = (ADAPTER_CONFIG, CONFIG_NAME, PARAMS_NAME)


def refuse_unfinished(folder: Path) -> None:
    """Raise CheckpointError, with what to do, if `folder` has no result and is, or lies in, a run's folder."""
    run = _run_of(folder)
    if run is None:
        return
    if any((run / name).is_file() for name in _RESULTS) and folder.name != MERGED:
        raise CheckpointError(
            f"{folder} holds what the training run in {run} goes on from, and no model; give {run}."
        )
    begins = (
        "goes on from its newest checkpoint"
        if any((run / CHECKPOINTS).glob("checkpoint-*"))
        else "begins anew"
    )
    raise CheckpointError(
        f"{folder} belongs to a training run that has not ended and has written no result; give the same `vitrail train` "
        f"command again: it {begins}, and at its end, or at Ctrl-C, it writes what was learned."
    )


def _run_of(folder: Path) -> Path | None:
    """Return the run's folder that `folder` belongs to, by the names that `vitrail train` gives."""
    places = [folder]
    if folder.name in (CHECKPOINTS, MERGED):
        places.append(folder.parent)
    elif folder.parent.name == CHECKPOINTS:
        places.append(folder.parent.parent)
    return next((place for place in places if (place / METRICS).is_file()), None)
