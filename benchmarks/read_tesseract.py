"""Vitrail beside Tesseract over a folder of images: python benchmarks/read_tesseract.py FOLDER [ROUNDS [THREADS]].

`vitrail read FOLDER --json`, start-up included, and Tesseract twice: one process an image (as a script over files does)
and one process for all (a list of files). Vitrail has two threads, which it makes two processes of; Tesseract has THREADS
(2): on a machine that others use, its second one mostly waits for the first, and it is faster with 1. The runs take
turns; what counts is the median of the rounds' ratios. CPU seconds are told beside them.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main(folder: Path, rounds: int, threads: str) -> None:
    files = sorted(str(path) for path in folder.glob("*.png"))
    with tempfile.TemporaryDirectory() as room:
        listing = Path(room) / "files.txt"
        listing.write_text("\n".join(files) + "\n")

        def ours() -> None:
            run("2", "vitrail", "read", str(folder), "--json")

        def one_by_one() -> None:
            for file in files:
                run(threads, "tesseract", file, "-", "--psm", "6")

        def all_at_once() -> None:
            run(threads, "tesseract", str(listing), "-", "--psm", "6")

        runs: dict[str, Callable[[], None]] = {
            "vitrail": ours,
            "tesseract": one_by_one,
            "tesseract_list": all_at_once,
        }
        ours()  # once for the disk's cache
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        work: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, command in runs.items():
                begun, before = time.perf_counter(), processor_seconds()
                command()
                seconds[name].append(time.perf_counter() - begun)
                work[name].append(processor_seconds() - before)
    result: dict[str, object] = {"images": len(files), "rounds": rounds, "tesseract_threads": int(threads)}
    for name, times in seconds.items():
        result[f"{name}_seconds"] = round(statistics.median(times), 2)
        result[f"{name}_cpu_seconds"] = round(statistics.median(work[name]), 2)
        result[f"{name}_over_vitrail"] = round(
            statistics.median(theirs / mine for theirs, mine in zip(times, seconds["vitrail"], strict=True)),
            2,
        )
    print(json.dumps(result))


def processor_seconds() -> float:
    """What ended processes that were started here have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(threads: str, *command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_THREAD_LIMIT": threads}
    subprocess.run(command, check=True, capture_output=True, env=environment)


if __name__ == "__main__":
    given = [*sys.argv[2:], "3", "2"] if len(sys.argv) < 3 else [*sys.argv[2:], "2"]
    main(Path(sys.argv[1]), int(given[0]), given[1])
