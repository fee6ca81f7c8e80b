"""WorkerPool: processes of one kind, each lent to one piece of work that takes several requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from vitrail.files.worker_process import WorkerProcess

_KEPT: Final = 4


class WorkerPool:
    """As many processes as are used at once; a few are kept for later. The arguments are those of `WorkerProcess`."""

    def __init__(self, module: str, packages: Sequence[str], **options: Any) -> None:
        self._module, self._packages, self._options = module, packages, options
        self._idle: deque[WorkerProcess] = deque()  # without a lock that a fork could leave closed

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """A started process, for the requests of the body alone. Raises UnsupportedError."""
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = WorkerProcess(self._module, self._packages, **self._options)
        try:
            worker.start()
            yield worker
        finally:
            if len(self._idle) < _KEPT:
                self._idle.append(worker)
            else:
                worker.stop()
