"""Numbers of bytes in words, for messages and tables. Measures nothing."""

from __future__ import annotations


def in_words(size: int) -> str:
    """7.7 GB, 61.3 MB, 1.2 kB, 90 bytes: decimal units, as disks and model cards count."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"
