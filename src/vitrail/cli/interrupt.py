"""Ctrl-C while a model answers: the answer ends, the program goes on. The second one interrupts whatever is running."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the answer is to end. Asked after every id; the first question says that the answer has begun."""

    def __init__(self) -> None:
        self._begun = False
        self.wanted = False

    def __call__(self) -> bool:
        self._begun = True
        return self.wanted

    def handle(self, number: int, frame: FrameType | None) -> None:
        """As a handler of signals: before the first id, and the second time, it raises KeyboardInterrupt."""
        if not self._begun or self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A Stop that Ctrl-C sets; afterwards Ctrl-C is what it was."""
    stop = Stop()
    before = signal.signal(signal.SIGINT, stop.handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
