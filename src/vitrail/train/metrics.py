"""metrics.jsonl: one line per step, or per several steps with their means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitrail.files.writing import write_text, writing
from vitrail.train.loop import Schedule, StepResult

NAME = "metrics.jsonl"


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Append one line."""
    with writing(folder), (folder / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all records up to the first damaged one."""
    path = folder / NAME
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            break
        found.append(record)
    return found


def cut(folder: Path, step: int) -> list[dict[str, Any]]:
    """Remove the records after `step` steps, which a resumed run writes again; return the remaining ones."""
    kept = [record for record in read(folder) if record["step"] <= step]
    write_text(folder / NAME, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


class StepMeans:
    """Writes the means of every `schedule.log_every` steps as one record, and passes it to `on_record`."""

    def __init__(
        self,
        folder: Path,
        name: str,
        schedule: Schedule,
        on_record: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        self.folder, self.name, self.schedule, self.on_record = folder, name, schedule, on_record
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, result: StepResult) -> None:
        """Add one step to the means."""
        figures = {
            "loss": result.loss,
            "norm": result.norm,
            **result.figures,
            "seconds_per_step": result.seconds,
        }
        for key, value in figures.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1
        if result.step % self.schedule.log_every == 0:
            record: dict[str, Any] = {"run": self.name, "step": result.step}
            record["rate"] = self.schedule.factor(result.step)
            record |= {key: value / self._count for key, value in self._sums.items()}
            append(self.folder, record)
            self.on_record(record)
            self._sums, self._count = {}, 0
