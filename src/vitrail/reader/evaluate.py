"""How well a checkpoint reads: character error rate on a folder of labelled pictures, through the public classes.

    python -m vitrail.reader.evaluate FOLDER [--model CHECKPOINT] [--json]

FOLDER has pictures and a labels.json: a list of {"file": …, "text": …}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError, VitrailError
from . import embedded_path

QUESTION = "What does it say?"


@dataclass(frozen=True, slots=True)
class Reading:
    """One picture: what it says, what was read, and the edits between the two."""

    file: str
    text: str
    read: str
    edits: int


@dataclass(frozen=True, slots=True)
class Score:
    """All pictures of a folder. `error_rate` is edits per character of the true texts."""

    pictures: int
    characters: int
    edits: int
    exact: int
    seconds: float
    readings: tuple[Reading, ...]

    @property
    def error_rate(self) -> float:
        return self.edits / max(1, self.characters)


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of one character that turn one text into the other."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def score(pairs: Sequence[tuple[str, str, str]], seconds: float = 0.0) -> Score:
    """Score of (file, true text, text read) triples."""
    readings = tuple(Reading(file, text, read, edit_distance(text, read)) for file, text, read in pairs)
    return Score(
        pictures=len(readings),
        characters=sum(len(reading.text) for reading in readings),
        edits=sum(reading.edits for reading in readings),
        exact=sum(reading.edits == 0 for reading in readings),
        seconds=seconds,
        readings=readings,
    )


def labels(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of a folder and their texts, as its labels.json has them.

    Raises:
        InputError: no labels.json, or not of the expected form.
    """
    path = folder / "labels.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [(folder / str(entry["file"]), str(entry["text"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(
            f'{path}: expected a JSON list of {{"file": …, "text": …}}, got {type(problem).__name__}: {problem}'
        ) from problem


def evaluate(folder: Path, model: Path | None = None, limit: int | None = None) -> Score:
    """Read every labelled picture of a folder, greedily and one by one, as `vitrail ask` does.

    Args:
        model: a checkpoint's folder; None: the embedded one.
        limit: most characters read of one picture; None: as generation_config.json says.
    """
    from ..auto import AutoModelForImageTextToText, AutoProcessor

    source = embedded_path() if model is None else model
    processor = AutoProcessor.from_pretrained(source)
    network = AutoModelForImageTextToText.from_pretrained(source, dtype="float32")
    begun = time.perf_counter()
    pairs = []
    for path, text in labels(folder):
        content = [{"type": "image", "path": str(path)}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = network.generate(
            **inputs, do_sample=False, **({} if limit is None else {"max_new_tokens": limit})
        )
        read = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        pairs.append((path.name, text, read))
    return score(pairs, time.perf_counter() - begun)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m vitrail.reader.evaluate", description="Character error rate."
    )
    parser.add_argument("folder", type=Path, help="pictures with a labels.json")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the embedded one)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    given = parser.parse_args(arguments)
    try:
        result = evaluate(given.folder, given.model)
    except VitrailError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    if given.json:
        sys.stdout.write(
            json.dumps({**asdict(result), "error_rate": result.error_rate}, ensure_ascii=False) + "\n"
        )
        return 0
    for reading in result.readings:
        wrong = f" read {reading.read!r}" if reading.edits else ""
        sys.stdout.write(f"{reading.edits:2d} {reading.file}: {reading.text!r}{wrong}\n")
    sys.stdout.write(
        f"character error rate {result.error_rate:.2%}, {result.exact} of {result.pictures} pictures without error, "
        f"{result.pictures / max(result.seconds, 1e-9):.1f} pictures a second\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
