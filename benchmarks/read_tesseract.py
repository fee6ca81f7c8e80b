"""Whole runs over a folder of pictures, Vitrail beside Tesseract: python benchmarks/read_tesseract.py FOLDER [ROUNDS].

`vitrail read FOLDER --json`, start-up included, and Tesseract twice: one process a picture (as a script over files does)
and one process for all (a list of files). Both use the same number of threads, THREADS. The runs take turns; what counts
is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

THREADS = "2"


def main(folder: Path, rounds: int) -> None:
    files = sorted(str(path) for path in folder.glob("*.png"))
    with tempfile.TemporaryDirectory() as room:
        listing = Path(room) / "files.txt"
        listing.write_text("\n".join(files) + "\n")

        def ours() -> None:
            run("vitrail", "read", str(folder), "--json")

        def one_by_one() -> None:
            for file in files:
                run("tesseract", file, "-", "--psm", "6")

        def all_at_once() -> None:
            run("tesseract", str(listing), "-", "--psm", "6")

        runs: dict[str, Callable[[], None]] = {
            "vitrail": ours,
            "tesseract": one_by_one,
            "tesseract_list": all_at_once,
        }
        ours()  # once for the disk's cache
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, command in runs.items():
                begun = time.perf_counter()
                command()
                seconds[name].append(time.perf_counter() - begun)
    result: dict[str, object] = {"pictures": len(files), "rounds": rounds}
    for name, times in seconds.items():
        result[f"{name}_seconds"] = round(statistics.median(times), 2)
        result[f"{name}_over_vitrail"] = round(
            statistics.median(theirs / mine for theirs, mine in zip(times, seconds["vitrail"], strict=True)),
            2,
        )
    print(json.dumps(result))


def run(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS, "OMP_THREAD_LIMIT": THREADS}
    subprocess.run(command, check=True, capture_output=True, env=environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
