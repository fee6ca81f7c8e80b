"""Hardware limits: memory bandwidth, matrix-product rate, and the resulting upper bounds for a ModelInfo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from vitrail.bench.geometries import PUBLISHED
from vitrail.bench.matmul import MatrixRate, Shape
from vitrail.bench.stream import StreamingRead

if TYPE_CHECKING:
    from vitrail.describe import ModelInfo

_TURNS = 3  # number of turns; the fastest counts, as other load can only slow one down
_CACHED = 1 << 28  # bytes of weights below which caches may hold part of them, so that bandwidth is no limit
_PROBE = (Shape(256, 4096, 4096),)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second of a streaming read, and floating-point operations per second of matrix products."""

    bandwidth: float
    products: float

    @classmethod
    @cache
    def measure(cls) -> Limits:
        """Measure this machine's cores once per process; takes about a second."""
        read, multiply = StreamingRead(next(iter(PUBLISHED))), MatrixRate(_PROBE)
        return cls(max(read.bandwidth() for _ in range(_TURNS)), max(multiply.rate() for _ in range(_TURNS)))

    def speed(self, info: ModelInfo) -> dict[str, Any]:
        """Return the record printed under "speed" by `vitrail info --json`.

        tokens_per_second: per precision, if every decoder weight is read once per token (None where caches may hold them);
        question_seconds: time of the products needed before the answer to `info.question` begins.
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
