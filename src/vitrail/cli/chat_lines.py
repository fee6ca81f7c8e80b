"""Lines: messages from standard input, one per line or several lines as one."""

import sys
from collections.abc import Callable

from vitrail.cli.output import echo
from vitrail.errors import InputError

QUOTES = '"""'


class Lines:
    """Messages from standard input.

    A line is a message. A backslash at its end continues it on the next line; the lines between two lines of three
    quotes are one message. A terminal has a prompt, editing and a history of this run.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdin is not None and sys.stdin.isatty()
        self.number = 0  # of the line read last
        self._edits = self.is_terminal and sys.stdout.isatty()
        if self._edits:
            _start_editing()

    def next(self, prompt: str) -> str | None:
        """Return the next message that is not blank, or None at the end of the input. Ctrl-C drops the typed text."""
        while (line := self._line(prompt)) is not None:
            if line.strip():
                return self._rest_of(line)
        return None

    def _rest_of(self, line: str) -> str | None:
        begin = self.number
        if line.lstrip().startswith(QUOTES):
            parts = [line.lstrip()[len(QUOTES) :]]
            while not parts[-1].rstrip().endswith(QUOTES):
                more = self._line("… ")
                if more is None:
                    if self.is_terminal:
                        return None
                    raise InputError(f"line {begin}: the message that begins with {QUOTES} has no end")
                parts.append(more)
            parts[-1] = parts[-1].rstrip()[: -len(QUOTES)]
            return "\n".join(parts).strip("\n")
        parts = [line]
        while parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1]
            more = self._line("… ")
            if more is None:
                break
            parts.append(more)
        return "\n".join(parts)

    def _line(self, prompt: str) -> str | None:
        self.number += 1
        try:
            if self._edits:
                return input(prompt)
            if self.is_terminal:
                echo(prompt, nl=False, err=True)
            line = sys.stdin.readline() if sys.stdin is not None else ""
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise InputError(f"line {self.number} of standard input is not UTF-8 text") from error
        return line.rstrip("\r\n") if line else None


def _start_editing() -> None:
    """Enable arrow keys and a history in memory."""
    try:
        import readline
    except ImportError:  # not on Windows, whose console has line editing
        return
    configure: Callable[[str], None] = readline.parse_and_bind
    configure("set enable-bracketed-paste on")  # several pasted lines are one message
