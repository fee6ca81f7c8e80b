"""PyTorch's matrix-product rate for given shapes: the limit for prefill and the vision tower."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.bench.timing import Clock
from vitrail.model.cost import matrices

TYPES = (torch.bfloat16, torch.float32)
_PROBE = 512  # side of the products that choose the faster dtype


@dataclass(frozen=True, slots=True)
class Shape:
    """One product: (rows, width) times a matrix (out, width)."""

    rows: int
    out: int
    width: int

    @property
    def flop(self) -> int:
        """Floating-point operations."""
        return 2 * self.rows * self.out * self.width


def decoder_shapes(model: Any, rows: int) -> list[Shape]:
    """Return the distinct products of one decoder layer."""
    return _shapes(model.decoder.layers[0], rows)


def tower_shapes(model: Any, rows: int) -> list[Shape]:
    """Return the distinct products of one layer of the tower."""
    return _shapes(model.vision_tower.transformer.layers[0], rows)


class MatrixRate:
    """Products of plain matrices in the faster of bfloat16 and float32.

    Args:
        shapes: products to run once each, in order.
        clock: returns seconds.
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
        """Return floating-point operations per second over all products."""
        started = self._clock()
        for x, weight in self._pairs:
            x @ weight.T
        return self.flop / (self._clock() - started)

    def _random(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns).to(self.dtype)


def _shapes(layer: nn.Module, rows: int) -> list[Shape]:
    found = {(int(weight.shape[0]), int(weight.shape[1])) for weight in matrices(layer)}
    return [Shape(rows, out, width) for out, width in sorted(found)]


def _probe(dtype: torch.dtype) -> float:
    """Return products per second of one small shape."""
    x = torch.randn(_PROBE, _PROBE).to(dtype)
    x @ x.T
    started = time.perf_counter()
    x @ x.T
    return 1 / (time.perf_counter() - started)
