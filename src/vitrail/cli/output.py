"""Output of the command line: `printable` cleans a text for a terminal, `echo` and `echo_json` write it."""

import contextlib
import json
import os
import re
import sys
from typing import Any, TextIO

import click

# C0 and C1 controls except line breaks and tabs, line separators, bidirectional marks, lone surrogates.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str, instead: str = "") -> str:
    """Return `text` without terminal controls and bidirectional marks; line breaks and tabs stay."""
    return _STEERING.sub(instead, text)


def one_line(text: str) -> str:
    """Return `text` on one line, without terminal controls."""
    return " ".join(printable(text, " ").split())


def echo(text: str = "", *, err: bool = False, nl: bool = True, dim: bool = False) -> None:
    """Write to stdout or stderr and flush, without terminal controls on a terminal. Errors of stderr are ignored."""
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return
    if stream.isatty():
        text = printable(text)
    try:
        click.echo(click.style(text, dim=True) if dim else text, err=err, nl=nl)
    except OSError:
        if not err:
            raise
        give_up(stream)


def echo_json(value: Any, indent: int | None = None) -> None:
    """Write a value as JSON to stdout; terminal controls and characters outside its encoding are escaped."""
    text = _STEERING.sub(_escaped, json.dumps(value, ensure_ascii=False, indent=indent))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = _STEERING.sub(_escaped, json.dumps(value, indent=indent))
    echo(text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def prepare_streams() -> None:
    """Make stdout and stderr accept every character; replace a closed stderr by the null device."""
    if sys.stderr is None:
        with contextlib.suppress(OSError):  # without a free descriptor, number 2 stays closed
            number = os.open(os.devnull, os.O_WRONLY)
            if number != 2 and not _is_open(2):
                os.dup2(number, 2)  # else the next opened file would get messages of C libraries
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # for characters that the terminal cannot show


def give_up(stream: TextIO) -> None:
    """Redirect a stream to the null device: Python would raise again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
