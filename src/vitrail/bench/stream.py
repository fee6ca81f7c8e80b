"""Memory bandwidth of this machine: the limit for anything that reads each weight once.

Sums a buffer larger than every cache: one addition per four bytes costs a core less than fetching them. The buffer uses
the same pages as weights, so that no workload can exceed it thanks to larger pages.
"""

import time

import torch

from vitrail.bench.geometries import TINY
from vitrail.bench.timing import Clock
from vitrail.ops import memory

SIZE = 512 * 2**20  # many times the largest desktop cache, a few dozen milliseconds
_TINY_SIZE = 4 * 2**20  # for geometries whose figures mean nothing


class StreamingRead:
    """Reads one buffer repeatedly, with PyTorch's number of threads.

    Args:
        geometry: workload it is compared with; the tiny one gets a tiny buffer.
        clock: returns seconds.
    """

    def __init__(self, geometry: str, clock: Clock = time.perf_counter) -> None:
        size = _TINY_SIZE if geometry == TINY else SIZE
        self._clock = clock
        self._values = memory.empty((size // 4,), torch.float32).fill_(1.0)

    def bandwidth(self) -> float:
        """Return bytes per second of one pass."""
        started = self._clock()
        self._values.sum()
        return self._values.numel() * 4 / (self._clock() - started)
