"""How much anonymous memory this process takes at most while something runs, as Linux counts it. Imports nothing heavy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Growth:
    """bytes: the peak above what was held before, once the block has ended."""

    bytes = 0


def anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@contextmanager
def growth() -> Iterator[Growth]:
    """Look every millisecond while inside."""
    found, before, done = Growth(), anonymous(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            found.bytes = max(found.bytes, anonymous() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
