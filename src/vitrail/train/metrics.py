"""metrics.jsonl: one line a step. A run that goes on first takes back the lines beyond its checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Write one line."""
    with (folder / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All records; a last line that was cut off is left out."""
    path = folder / NAME
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def cut(folder: Path, step: int) -> list[dict[str, Any]]:
    """Take back the records after `step` steps, and give those that stay."""
    kept = [record for record in read(folder) if record["step"] <= step]
    part = folder / f".{NAME}.part"
    part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(part, folder / NAME)
    return kept
