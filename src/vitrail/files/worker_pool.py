"""WorkerPool: processes of one kind, each reserved for one job of several requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from vitrail.files.worker_process import WorkerProcess

_KEPT: Final = 4


class WorkerPool:
    """One process per concurrent job; a few idle ones are kept. The arguments are those of `WorkerProcess`."""

    def __init__(self, module: str, packages: Sequence[str], **options: Any) -> None:
        self._module, self._packages, self._options = module, packages, options
        self._idle: deque[WorkerProcess] = deque()  # needs no lock that a fork could copy in the locked state

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """Provide a started process for the body alone. Raises UnsupportedError."""
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
