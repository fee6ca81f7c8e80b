"""How many of PyTorch's threads a step uses: the caller's alone where its products are small. Changes no result.

A product of half a millisecond gains little from a second thread, and beside other processes it waits for one that lost its
core: milliseconds, at every product. The kernels' own threads are chosen in the same way, job by job (native/pool.h).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

from vitrail.ops.cpu import library

LEAST = 1 << 21  # weights that are read, or as long, of a product that is worth a second thread
_ROWS = 32  # rows whose products take as long as reading the weights


def fitting(rows: int, weights: int) -> AbstractContextManager[None]:
    """Within the block PyTorch uses one thread if no product is larger than `rows` through a matrix of so many weights.

    A function of the sizes alone. A thread whose first call of PyTorch falls into another thread's block keeps one thread.
    """
    if (
        torch.compiler.is_compiling()
        or weights * (1 + rows // _ROWS) >= LEAST
        or torch.get_num_threads() == 1
    ):
        return nullcontext()
    return _Alone()


class _Alone:
    """One thread for PyTorch's operators in this thread; the kernels keep theirs, of which a small job takes one."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        library.hold_threads(self._before)
        torch.set_num_threads(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._before)
        library.hold_threads(0)
