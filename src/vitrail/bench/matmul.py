"""How fast PyTorch multiplies matrices of given shapes here: the limit beside which prefill and the tower are measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.bench.timing import Clock

TYPES = (torch.bfloat16, torch.float32)
_PROBE = 512  # side of the products by which the faster type is found


@dataclass(frozen=True, slots=True)
class Shape:
    """One product: (rows, width) by a matrix (out, width)."""

    rows: int
    out: int
    width: int

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.out * self.width


class MatrixRate:
    """Products of plain matrices, in the faster of bfloat16 and float32 on this machine.

    shapes: what is multiplied, once each, in this order. clock: of seconds.
    """

    def __init__(self, shapes: Sequence[Shape], clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.dtype = max(TYPES, key=_probe)
        self._pairs = [
            (self._random(shape.rows, shape.width), self._random(shape.out, shape.width)) for shape in shapes
        ]
        self.flop = sum(shape.flop for shape in shapes)
        self.rate()

    def rate(self) -> float:
        """Floating-point operations per second of all products, one after another."""
        started = self._clock()
        for x, weight in self._pairs:
            x @ weight.T
        return self.flop / (self._clock() - started)

    def _random(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns).to(self.dtype)


def _probe(dtype: torch.dtype) -> float:
    """Products per second of one small shape."""
    x = torch.randn(_PROBE, _PROBE).to(dtype)
    x @ x.T
    started = time.perf_counter()
    x @ x.T
    return 1 / (time.perf_counter() - started)
