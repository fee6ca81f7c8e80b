"""Limits: how fast this machine reads memory and multiplies, and what no model of a ModelInfo can therefore exceed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from vitrail.bench.geometries import PUBLISHED
from vitrail.bench.matmul import MatrixRate, Shape
from vitrail.bench.stream import StreamingRead

if TYPE_CHECKING:
    from vitrail.describe import ModelInfo

_TURNS = 3  # the best counts: other work can only slow a turn down
_CACHED = 1 << 28  # bytes of weights below which caches may hold a part of them, so that memory is no limit
_PROBE = (Shape(256, 4096, 4096),)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second of a streaming read, operations per second of matrix products."""

    bandwidth: float
    products: float

    @classmethod
    @cache
    def measure(cls) -> Limits:
        """The limits of this machine's cores, in about a second; once in a process."""
        read, multiply = StreamingRead(next(iter(PUBLISHED))), MatrixRate(_PROBE)
        return cls(max(read.bandwidth() for _ in range(_TURNS)), max(multiply.rate() for _ in range(_TURNS)))

    def speed(self, info: ModelInfo) -> dict[str, Any]:
        """The record that `vitrail info --json` prints under "speed".

        tokens_per_second: by precision, when every weight of the decoder is read once for a token (None where caches may
        hold them); question_seconds: the products until the answer to `info.question` begins.
        """
        return {
            "bytes_per_second": round(self.bandwidth),
            "flop_per_second": round(self.products),
            "tokens_per_second": {
                name: round(self.bandwidth / size, 3) if (size := need["read_per_token"]) > _CACHED else None
                for name, need in info.memory.items()
            },
            "question_seconds": round(info.question["flop"] / self.products, 3),
        }
