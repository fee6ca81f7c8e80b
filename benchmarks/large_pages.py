"""Decoding with weights in large pages and in small ones, in one process and in turn: `python benchmarks/large_pages.py`.

Two models of the same random weights, made with VITRAIL_PAGES=large and =small, and the streaming read of either kind.
Both lie in memory at once. Only the ratios say anything on a machine with neighbours.
"""

import argparse
import os
import statistics
import time

import torch

from vitrail.bench.decode import DecodeStep
from vitrail.bench.geometries import params_of
from vitrail.bench.random_model import FORMATS, random_model
from vitrail.bench.stream import StreamingRead
from vitrail.ops import memory

CONTEXT = 256  # positions that are cached


def made(choice: str, geometry: str, layers: int, format: str) -> tuple[DecodeStep, StreamingRead]:
    """A step and a read over memory of one kind."""
    os.environ[memory.ENVIRONMENT] = choice
    print(f"{choice}: {memory.pages()}")
    return DecodeStep(random_model(params_of(geometry, layers), format), 1, CONTEXT), StreamingRead(geometry)


def seconds(step: DecodeStep) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", default="pixtral-12b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--format", default="q4", choices=FORMATS)
    parser.add_argument("--repeat", type=int, default=15)
    given = parser.parse_args()
    (small, small_read), (large, large_read) = (
        made(choice, given.geometry, given.layers, given.format) for choice in ("small", "large")
    )
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        seconds(small), seconds(large)
        steps = [seconds(small) / seconds(large) for _ in range(given.repeat)]
        reads = [large_read.bandwidth() / small_read.bandwidth() for _ in range(given.repeat)]
        print(
            f"{threads} threads: steps {statistics.median(steps):.2f} times as fast ({min(steps):.2f} to {max(steps):.2f}), "
            f"the streaming read {statistics.median(reads):.2f} ({min(reads):.2f} to {max(reads):.2f})"
        )


if __name__ == "__main__":
    main()
