"""Waiting: a status line on stderr (terminals only). Printer: the answer on stdout during generation."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitrail.cli.output import echo, printable

if TYPE_CHECKING:
    from rich.status import Status

    from vitrail.responses.events import Piece


class Waiting:
    """A status line with a spinner; without a terminal nothing, and rich is not imported."""

    def __init__(self, enabled: bool = True) -> None:
        self._status: Status | None = None
        if enabled and sys.stderr.isatty():
            from vitrail.cli.console import PlainConsole

            self._status = PlainConsole(stderr=True).status("")

    def say(self, text: str) -> None:
        """Show `text` beside the spinner."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(text))
            self._status.start()

    def stop(self) -> None:
        """Remove the line."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def waiting(enabled: bool = True) -> Iterator[Waiting]:
    """Yield a Waiting and remove its line at the end, also after errors."""
    line = Waiting(enabled)
    try:
        yield line
    finally:
        line.stop()


class Printer:
    """Writer of text pieces to stdout without buffering; `close` ends the line."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._open = False
        self._thinking = False

    def write(self, piece: str) -> None:
        """Write and flush; on a terminal without control characters, which could come from an image's text."""
        if self._terminal:
            piece = printable(piece)
        self._open = True  # first: an interruption may come before the next line
        sys.stdout.write(piece)
        sys.stdout.flush()

    def hear(self, piece: "Piece") -> None:
        """Show a piece of an answer: text, and reasoning dimmed on stderr. Tool calls are shown when complete."""
        from vitrail.responses.events import ReasoningDelta, TextDelta

        if isinstance(piece, TextDelta):
            self._end_thought()
            self.write(piece.text)
        elif isinstance(piece, ReasoningDelta) and piece.text:
            self._thinking = True
            echo(piece.text, err=True, nl=False, dim=True)

    def _end_thought(self) -> None:
        if self._thinking:
            self._thinking = False
            echo(err=True)

    def close(self) -> None:
        """End the line."""
        self._end_thought()
        if self._open:
            self._open = False
            sys.stdout.write("\n")
            sys.stdout.flush()
