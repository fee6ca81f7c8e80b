"""`vitrail read FILE…`: the text of many pictures, by the embedded reader. Reading itself is reader/reading.py's work."""

import glob
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrail.cli.pictures import open_picture
from vitrail.cli.screen import waiting
from vitrail.errors import ImageError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from vitrail.reader.reading import Reading

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What counts as a picture inside a folder; a file that is named is opened whatever its name."""

EXAMPLES = """\b
Examples:
  vitrail read sign.png
  vitrail read scans/ "labels/*.jpg" --json > texts.jsonl
  vitrail read scans/ --json | jq -r 'select(.confidence < 0.8) | .file'

Exit status: 0 all were read, 2 a picture could not be read (one line on stderr says why; the others are read).
"""


@click.command("read", epilog=EXAMPLES)
@click.argument("names", nargs=-1, required=True, metavar="FILE…")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a file: file, text, confidence, seconds."
)
@click.option(
    "-m",
    "--model",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Another checkpoint of the reader.",
)
def read(names: tuple[str, ...], as_json: bool, model: Path | None) -> None:
    """Read the printed text in each FILE: a picture, a folder of pictures, or a pattern such as 'scans/*.png'.

    Each line of text is printed after its file's name (without it for a single file). The confidence is the
    probability of the character that the reader was least sure of.
    """
    files = find_pictures(names)
    failed: list[str] = []
    opened: deque[str] = deque()

    def pictures() -> "Iterator[Image]":
        for file in files:
            try:
                picture = open_picture(file)
            except ImageError as error:
                failed.append(file)
                _tell_failure(file, error, as_json)
                continue
            opened.append(file)
            yield picture

    with waiting() as line:
        line.say("starting")
        from vitrail.reader.reading import BatchReader

        reader = BatchReader(model)
    with _progress(len(files)) as advance:
        for reading in reader.read(pictures()):
            _show(opened.popleft(), reading, as_json, alone=len(files) == 1)
            advance(1)
    if failed:
        count = "the picture" if len(files) == 1 else f"{len(failed)} of {len(files)} pictures"
        raise InputError(f"{count} could not be read: {', '.join(failed[:3])}{' …' if failed[3:] else ''}")


def find_pictures(names: Sequence[str]) -> list[str]:
    """Files that the names stand for, each once, in order; folders are searched to the bottom.

    Raises:
        InputError: a name that stands for nothing.
    """
    found: dict[str, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"the folder {name} has no pictures ({', '.join(sorted(SUFFIXES))})")
        elif glob.has_magic(name) and not path.exists():
            inside = sorted(p for p in glob.glob(name, recursive=True) if Path(p).is_file())
            if not inside:
                raise InputError(f"no file fits {name}")
        else:
            inside = [name]  # a file, a URL, or '-'; whoever opens it says what is wrong
        found |= dict.fromkeys(inside)
    return list(found)


def _show(file: str, reading: "Reading", as_json: bool, alone: bool) -> None:
    if as_json:
        record = {
            "file": file,
            "text": reading.text,
            "confidence": round(reading.confidence, 4),
            "seconds": round(reading.seconds, 4),
        }
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    for line in reading.text.split("\n"):
        click.echo(line if alone else f"{file}: {line}")


def _tell_failure(file: str, error: ImageError, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"file": file, "error": str(error)}, ensure_ascii=False))
    else:
        click.echo(f"vitrail: {error}", err=True)


@contextmanager
def _progress(total: int) -> "Iterator[Callable[[int], None]]":
    """A bar on stderr for more than one file, on terminals only."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda count: bar.advance(task, count)
