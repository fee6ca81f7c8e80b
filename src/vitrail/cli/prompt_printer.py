"""PromptPrinter: control tokens coloured on a terminal, images as grids, differences line by line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vitrail.cli.output import echo

if TYPE_CHECKING:
    from vitrail.processor.prompt_view import PromptView, Run

STYLES = {"control": "bold cyan", "image": "bold magenta", "text": ""}


class PromptPrinter:
    """Printer of prompts on standard output. numbered: print a number before each."""

    def __init__(self, *, numbered: bool) -> None:
        self._numbered = numbered
        self._count = 0
        self._terminal = sys.stdout.isatty()

    def show(self, view: PromptView, *, with_ids: bool) -> None:
        """Print the prompt, its size, and typed text that looks like a control token."""
        self._head(_size(view))
        self._write([(run.text, STYLES[run.kind]) for run in view.runs])
        if view.typed:
            names = ", ".join(f"{name} ×{times}" for name, times in view.typed.items())
            self._write([(f"as text, not as control tokens: {names}", "dim")])
        if with_ids:
            echo(" ".join(map(str, view.ids)))

    def differences(self, one: PromptView, other: PromptView) -> None:
        """Print the runs of both prompts, marked as common, only in `one` (-) or only in `other` (+)."""
        self._head(f"- {_size(one)}\n+ {_size(other)}")
        if one.ids == other.ids:
            echo("the same ids")
            return
        before, after = one.runs, other.runs
        matcher = difflib.SequenceMatcher(
            None, [r.ids for r in before], [r.ids for r in after], autojunk=False
        )
        for kind, first, stop, first_other, stop_other in matcher.get_opcodes():
            if kind == "equal":
                self._lines(" ", before[first:stop])
            else:
                self._lines("-", before[first:stop])
                self._lines("+", after[first_other:stop_other])

    def _head(self, text: str) -> None:
        if self._count:
            echo()
        self._count += 1
        self._write([(f"{self._count}. {text}" if self._numbered else text, "dim")])

    def _lines(self, sign: str, runs: Sequence[Run]) -> None:
        styles = {"-": "red", "+": "green"}
        for run in runs:
            text = run.text if run.kind != "text" else _quoted(run.text)
            self._write([(f"{sign} {text}", styles.get(sign, STYLES[run.kind]))])

    def _write(self, pieces: Iterable[tuple[str, str]]) -> None:
        """Print texts, coloured and without terminal controls on a terminal."""
        if not self._terminal:
            echo("".join(text for text, _ in pieces))
            return
        from rich.text import Text

        from vitrail.cli.console import PlainConsole

        line = Text()
        for text, style in pieces:
            line.append(text, style=style)
        PlainConsole(soft_wrap=True).print(line)


def _size(view: PromptView) -> str:
    parts = [f"{len(view.ids)} ids"]
    if view.grids:
        cells = ", ".join(f"{rows}×{cols}" for rows, cols in view.grids)
        parts.append(f"{len(view.grids)} image{'s' if len(view.grids) > 1 else ''} ({cells})")
    return f"{', '.join(parts)}, {view.format}"


def _quoted(text: str) -> str:
    """Return a text on one line, with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
