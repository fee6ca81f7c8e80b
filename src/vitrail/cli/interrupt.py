"""Stop: Ctrl-C during an answer ends the answer, the second one raises KeyboardInterrupt."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Callback `stop` of an answer, called after every id; its first call marks the start of the answer."""

    def __init__(self) -> None:
        self._begun = False
        self.wanted = False

    def __call__(self) -> bool:
        self._begun = True
        return self.wanted

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT: raise KeyboardInterrupt before the first id and the second time, else request the end."""
        if not self._begun or self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Yield a Stop that Ctrl-C sets; restore the signal handler afterwards."""
    stop = Stop()
    before = signal.signal(signal.SIGINT, stop.handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
