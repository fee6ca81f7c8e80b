"""`vitrail read FILE…`: options and output. Reading: reader/reading.py."""

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrail.cli.images import STDIN, open_image
from vitrail.cli.options import Named, NamedPath, complete_files
from vitrail.cli.output import echo, echo_json, one_line
from vitrail.cli.screen import waiting
from vitrail.errors import InputError
from vitrail.reader.files import FileReading, Reading, find_images, open_file, read_files
from vitrail.reader.worker_pool import read_apart, useful_processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitrail.images.load import PilImage

EXAMPLES = """\b
Examples:
  vitrail read sign.png
  vitrail read scans/ "labels/*.jpg" --json > texts.jsonl
  vitrail read scans/ --json | jq -r 'select(.confidence < 0.8) | .file'
  vitrail read labels.pdf --json

Exit status: 0 all were read, 2 an image could not be read (one line on stderr says why; the others are read).
"""


@click.command("read", epilog=EXAMPLES)
@click.argument(
    "names", nargs=-1, required=True, metavar="FILE…", type=Named(), shell_complete=complete_files
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object a file: file, text, confidence, seconds; for a PDF one a page, with its number as page.",
)
@click.option(
    "-m",
    "--model",
    type=NamedPath(),
    metavar="FOLDER",
    help="Another checkpoint of the reader.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    metavar="N",
    help="How many processes read side by side.  [default: one a core, for at least 40 files each]",
)
def read(names: tuple[str, ...], as_json: bool, model: Path | None, processes: int | None) -> None:
    """Read the printed text in each FILE: an image, a folder of images, a PDF, or a pattern such as 'scans/*.png'.

    Each line of text is printed after its file's name (without it for a single file). The confidence is the
    probability of the character that the reader was least sure of.
    """
    files = find_images(names)
    count = 1 if STDIN in files else min(len(files), processes or useful_processes(len(files)))
    found = read_apart(files, count, model) if count > 1 else _read_here(files, model)
    failed: list[str] = []
    with closing(found), _progress(len(files)) as advance:
        for index, reading in _in_order(found, advance):
            if reading.error is None:
                _show(files[index], reading, as_json, alone=len(files) == 1)
            else:
                failed.append(files[index])
                _tell_failure(files[index], reading.error, as_json)
    if failed:
        what = "the image" if len(files) == 1 else f"{len(failed)} of {len(files)} images"
        raise InputError(f"{what} could not be read: {', '.join(failed[:3])}{' …' if failed[3:] else ''}")


def _read_here(files: Sequence[str], model: Path | None) -> Generator[tuple[int, FileReading], None, None]:
    """Yield the same as read_apart(), in this process."""
    with waiting(len(files) == 1) as line:  # else the bar is shown
        line.say("starting")
        from vitrail.reader.reading import BatchReader

        reader = BatchReader(model)
    yield from enumerate(read_files(reader, files, _open))


def _open(name: str) -> "list[PilImage]":
    return [open_image(name)] if name == STDIN else open_file(name)


def _in_order(
    found: Iterable[tuple[int, FileReading]], advance: "Callable[[int], None]"
) -> Iterator[tuple[int, FileReading]]:
    """Yield files in their given order, each as soon as it and all before it are read."""
    early: dict[int, FileReading] = {}
    following = 0
    for index, reading in found:
        early[index] = reading
        advance(1)
        while following in early:
            yield following, early.pop(following)
            following += 1


def _show(file: str, reading: FileReading, as_json: bool, alone: bool) -> None:
    for number, page in enumerate(reading.pages, 1):
        place = {"page": number} if reading.paged else {}
        if as_json:
            echo_json({"file": file, **place, **_record(page)})
            continue
        named = one_line(file)
        before = f"{named}, page {number}: " if reading.paged else "" if alone else f"{named}: "
        for line in page.text.split("\n"):
            echo(before + line)


def _record(page: Reading) -> dict[str, object]:
    return {"text": page.text, "confidence": round(page.confidence, 4), "seconds": round(page.seconds, 4)}


def _tell_failure(file: str, error: str, as_json: bool) -> None:
    if as_json:
        echo_json({"file": file, "error": error})
    else:
        echo(f"vitrail: {one_line(error)}", err=True)


@contextmanager
def _progress(total: int) -> "Iterator[Callable[[int], None]]":
    """Show a bar on stderr for more than one file, on terminals only; yield its advance."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from vitrail.cli.console import PlainConsole

    columns = (SpinnerColumn(), TextColumn("reading"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda count: bar.advance(task, count)
