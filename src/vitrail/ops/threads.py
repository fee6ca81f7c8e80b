"""Number of PyTorch threads per step: one where its products are small.

A product of half a millisecond gains little from a second thread, and on a shared machine may wait milliseconds for a
thread that was descheduled, at every product. The kernels choose their threads in the same way, per job (native/pool.h).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

from vitrail.ops.cpu import library

LEAST = 1 << 21  # weights read by a product for which a second thread pays
_ROWS = 32  # rows whose products take as long as reading the weights


def fitting(rows: int, weights: int, *, recomputed: bool = False) -> AbstractContextManager[None]:
    """Use one PyTorch thread within the block if no product exceeds `rows` through a matrix of `weights` weights.

    A function of the sizes alone: PyTorch's small float32 products then have the bits of one thread on every machine. Not
    used where a backward pass recomputes blocks (`recomputed`), as it would run with another thread count. A thread whose
    first PyTorch call happens within another thread's block keeps one thread.
    """
    if (
        torch.compiler.is_compiling()
        or recomputed
        or weights * (1 + rows // _ROWS) >= LEAST
        or torch.get_num_threads() == 1
    ):
        return nullcontext()
    return _Alone()


class _Alone:
    """One thread for PyTorch's operators in this thread; kernels keep theirs, and use one for a small job."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        library.hold_threads(self._before)
        torch.set_num_threads(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._before)
        library.hold_threads(0)
