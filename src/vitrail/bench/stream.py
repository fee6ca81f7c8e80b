"""How fast this machine reads memory: the limit of everything that touches each weight once. No model.

A sum over a buffer that no cache holds: one addition for four bytes costs a core less than fetching them. It lies in
pages as weights do, so that no work can beat it by larger ones.
"""

import time

import torch

from vitrail.bench.geometries import TINY
from vitrail.bench.timing import Clock
from vitrail.ops import memory

SIZE = 512 * 2**20  # bytes: many times the largest cache of a desktop, and a few dozen milliseconds
_TINY_SIZE = 4 * 2**20  # where no figure means anything


class StreamingRead:
    """Reads one buffer again and again, with as many threads as PyTorch has.

    geometry: whose work it stands beside; the tiny one's buffer is tiny too. clock: of seconds.
    """

    def __init__(self, geometry: str, clock: Clock = time.perf_counter) -> None:
        size = _TINY_SIZE if geometry == TINY else SIZE
        self._clock = clock
        self._values = memory.empty((size // 4,), torch.float32).fill_(1.0)

    def bandwidth(self) -> float:
        """Bytes per second of one pass."""
        started = self._clock()
        self._values.sum()
        return self._values.numel() * 4 / (self._clock() - started)
