"""Text for messages and tables: many names on one line, sizes in bytes, an error on one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Text up to a short number between dots, the number, and what follows; or the whole text.
_NUMBERED = re.compile(r"(.*?\.(?=\d{1,6}\.)|.*)(?:(\d{1,6})(\..*))?", re.DOTALL | re.ASCII)


def listed(names: Iterable[str], *, most: int = 200) -> str:
    """Return names for a message; those that differ in one number are grouped: layers.{0-39}.mlp.weight.

    Groups after the first `most` are counted.
    """
    groups: dict[tuple[str, str], set[int]] = {}
    for raw in names:
        name = "".join(
            letter if letter.isprintable() else "?" for letter in raw
        )  # names from a file are untrusted
        head, number, tail = _NUMBERED.match(name).groups()  # type: ignore[union-attr]  # matches every text
        groups.setdefault((head, tail), set()).add(-1 if number is None else int(number))
    shown = [_drawn_together(head, numbers, tail) for (head, tail), numbers in groups.items()]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")


def _drawn_together(head: str, numbers: set[int], tail: str | None) -> str:
    if numbers == {-1}:
        return head[:200]
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    number_text = texts[0] if len(numbers) == 1 else "{" + ",".join(texts) + "}"
    return f"{head[:200]}{number_text}{(tail or '')[:200]}"


def in_words(size: int) -> str:
    """Format a size as 7.7 GB, 61.3 MB, 1.2 kB or 90 bytes: decimal units, as on disks and model cards."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"


def first_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
