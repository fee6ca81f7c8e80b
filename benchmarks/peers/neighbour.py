"""Decoding with one busy neighbour process: how much of the quiet rate is left. Ours, and llama.cpp's where it is named.

python benchmarks/peers/neighbour.py [--format q4] [--layers 8] [--llama-python PYTHON --gguf FILE]
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from comparison import Timed, header, keep, options, set_threads, show, spread
from turns import interleaved, median, ratio
from worker import Worker

from vitrail.bench.decode import DecodeStep
from vitrail.bench.geometries import params_of
from vitrail.bench.random_model import FORMATS, random_model

BUSY = "while True: sum(range(10000))"


def beside(work: Callable[[], float]) -> Callable[[], float]:
    """The same work while another process keeps one core busy."""

    def run() -> float:
        neighbour = subprocess.Popen([sys.executable, "-c", BUSY])
        try:
            time.sleep(0.3)
            return work()
        finally:
            neighbour.kill()
            neighbour.wait()

    return run


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--format", choices=FORMATS, default="q4")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--llama-python")
    parser.add_argument("--gguf")
    given = parser.parse_args()
    set_threads(given.threads)
    step = DecodeStep(random_model(params_of(given.geometry, given.layers), given.format), 1, given.context)
    sides: dict[str, Callable[[], float]] = {"vitrail": Timed(step)}
    about = {}
    if given.llama_python:
        peer = Worker(given.llama_python, "llama.py", given.gguf, given.threads)
        about = peer.about
        sides["llama.cpp"] = lambda: peer.ask("decode", rows=1, context=given.context, steps=3)["seconds"]
        sides["llama.cpp"]()
    header(about)
    for name, work in sides.items():
        found = interleaved({"quiet": work, "beside": beside(work)}, given.turns)
        kept = ratio(found, "quiet", "beside")
        quiet, busy = median(found["quiet"]), median(found["beside"])
        print(
            f"{name}: quiet {show(quiet)}, beside a busy process {show(busy)}: {spread(kept)} of its rate is left",
            flush=True,
        )
        keep(given.out, {"what": f"{name} beside a busy process", "rate": kept, "quiet_seconds": quiet})


if __name__ == "__main__":
    main()
