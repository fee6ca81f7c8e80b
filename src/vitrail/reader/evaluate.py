"""Character error rate of a checkpoint on a folder of labelled images, optionally compared with Tesseract.

    python -m vitrail.reader.evaluate FOLDER [--model CHECKPOINT] [--tesseract] [--by font] [--sheet WORST.png] [--json]

FOLDER has images and a labels.json: a list of {"file": …, "text": …}. Further keys with a word or a list of words
("font", "wear") are the groups for --by. reader/testset.py creates such folders.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitrail.errors import InputError, VitrailError
from vitrail.images.load import load_image
from vitrail.reader.score import Label, Score, score


def read_labels(folder: Path) -> list[Label]:
    """Read the labels.json of a folder.

    Raises:
        InputError: labels.json is missing or malformed.
    """
    path = folder / "labels.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Label(str(entry["file"]), str(entry["text"]), tuple(_groups(entry))) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise InputError(
            f'{path}: expected a JSON list of {{"file": …, "text": …}}, got {type(problem).__name__}: {problem}'
        ) from problem


def evaluate(folder: Path, model: Path | None = None) -> tuple[Score, float]:
    """Read every labelled image of a folder greedily, as `vitrail read` does.

    Args:
        model: a checkpoint folder; None: the embedded one.

    Returns:
        The score and the seconds taken.
    """
    from vitrail.reader.reading import BatchReader

    labels = read_labels(folder)
    begun = time.perf_counter()
    reader = BatchReader(model)
    images = (load_image(folder / label.file) for label in labels)
    result = score(labels, (reading.text for reading in reader.read(images)))
    return result, time.perf_counter() - begun


def tesseract(folder: Path) -> tuple[Score, float]:
    """Score Tesseract on the same folder: one process per image, page segmentation as one block (--psm 6).

    Raises:
        InputError: Tesseract is not installed.
    """
    program = shutil.which("tesseract")
    if program is None:
        raise InputError("the program tesseract is not installed; compare on a machine that has it.")
    labels = read_labels(folder)
    begun = time.perf_counter()
    texts = [_tesseract(program, folder / label.file) for label in labels]
    return score(labels, texts), time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m vitrail.reader.evaluate", description="Character error rate."
    )
    parser.add_argument("folder", type=Path, help="images with a labels.json")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the embedded one)")
    parser.add_argument("--tesseract", action="store_true", help="Tesseract's score beside it")
    parser.add_argument("--by", nargs="*", default=[], metavar="KEY", help="a table for each of these keys")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw the worst images with what was read")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    given = parser.parse_args(arguments)
    try:
        scores = {"vitrail": evaluate(given.folder, given.model)}
        if given.tesseract:
            scores["tesseract"] = tesseract(given.folder)
        if given.sheet is not None:
            from vitrail.reader.contact_sheet import save_sheet

            save_sheet(scores["vitrail"][0].worst(12), given.folder, given.sheet)
    except VitrailError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    if given.json:
        sys.stdout.write(json.dumps({n: _record(*s) for n, s in scores.items()}, ensure_ascii=False) + "\n")
        return 0
    for line in _report(scores, given.by):
        sys.stdout.write(line + "\n")
    return 0


def _report(scores: dict[str, tuple[Score, float]], keys: Sequence[str]) -> Iterator[str]:
    ours = scores["vitrail"][0]
    for graded in ours.readings:
        wrong = f" read {graded.read!r}" if graded.edits else ""
        yield f"{graded.edits:2d} {graded.label.file}: {graded.label.text!r}{wrong}"
    for key in keys:
        tables = {name: result.by(key) for name, (result, _) in scores.items()}
        yield f"\n| {key} | images | " + " | ".join(f"{name} CER | exact" for name in tables) + " |"
        yield "|---|---|" + "---|---|" * len(tables)
        for value, part in tables["vitrail"].items():
            cells = (
                f"{t[value].error_rate:.2%} | {t[value].exact / t[value].images:.0%}" for t in tables.values()
            )
            yield f"| {value} | {part.images} | " + " | ".join(cells) + " |"
    for name, (result, seconds) in scores.items():
        yield (
            f"{name}: character error rate {result.error_rate:.2%}, {result.exact} of {result.images} images "
            f"without error, {result.images / max(seconds, 1e-9):.1f} images a second"
        )


def _record(result: Score, seconds: float) -> dict[str, Any]:
    return {
        "images": result.images,
        "error_rate": result.error_rate,
        "exact": result.exact,
        "seconds": seconds,
        "readings": [
            {"file": g.label.file, "text": g.label.text, "read": g.read, "edits": g.edits}
            for g in result.readings
        ],
    }


def _groups(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in entry.items():
        if key not in {"file", "text"}:
            yield from ((key, str(item)) for item in (value if isinstance(value, list) else [value]))


def _tesseract(program: str, image: Path) -> str:
    done = subprocess.run(  # the program comes from shutil.which, the arguments are paths
        [program, str(image.absolute()), "-", "--psm", "6"], capture_output=True, check=False, timeout=60
    )
    lines = done.stdout.decode("utf-8", errors="replace").splitlines()
    return "\n".join(line.strip() for line in lines if line.strip())


if __name__ == "__main__":
    sys.exit(main())
