"""Output of `vitrail quantize`: the policy, a progress bar, the errors of layers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vitrail.cli.console import PlainConsole
from vitrail.files.formatting import in_words

if TYPE_CHECKING:
    from vitrail.weights.quantize import Progress, Written
    from vitrail.weights.quantize_plan import Work

WIDTH = 110  # if the output is not a terminal


def show_policy(work: Work) -> None:
    """Print the format of each part of the model."""
    table = _table("part", "format", "modules", "weights", "bits each", "bytes", left=("part", "format"))
    table.add_column("")
    for row in work.rows:
        format_ = f"{row.kind}, groups of {row.group}" if row.group else row.kind
        numbers = (f"{row.modules}", f"{row.weights:,}", f"{row.bits:.2f}", in_words(row.size))
        table.add_row(row.part, format_, *(numbers if row.weights else ("1", "", "", "")), row.why)
    bits = work.size * 8 / max(1, work.weights)
    table.add_row("all", "", "", f"{work.weights:,}", f"{bits:.2f}", in_words(work.size), "")
    _console().print(table)


def show_report(written: Written, *, every: bool = False) -> None:
    """Print the layers with the largest errors, or all packed ones in the model's order, and the totals."""
    report = written.as_json()
    shown, title = report["worst"], "largest relative errors"
    if every:
        shown = [layer for layer in report["layers"] if layer["relative_error"] is not None]
        title = "relative errors"
    if shown:
        table = _table(title, "format", "error", left=(title, "format"))
        for layer in shown:
            table.add_row(layer["name"], layer["format"], f"{layer['relative_error']:.4f}")
        _console().print(table)
    files = report["files"][0] if len(report["files"]) == 1 else f"{len(report['files'])} files"
    kept = f", {written.kept_files} of an earlier run" if written.kept_files else ""
    error = report["relative_error"]
    whole = "" if error is None else f", relative error {error:.4f} over all"
    _console().print(
        f"{report['out']}: {files}{kept}, {in_words(report['bytes'])}, {report['bits_per_weight']:.2f} bits a weight{whole}"
    )


@contextmanager
def watching() -> Iterator[Progress | None]:
    """Yield the progress callback of weights/quantize.py with a bar on stderr; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("quantising")

        def hear(name: str, done: int, size: int) -> None:
            short = ".".join(name.split(".")[-4:-1])
            bar.update(task, description=short[:40], completed=done, total=size)

        yield hear


def _table(*names: str, left: tuple[str, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def _console() -> PlainConsole:
    width = None if sys.stdout.isatty() else WIDTH
    return PlainConsole(soft_wrap=not sys.stdout.isatty(), width=width)
