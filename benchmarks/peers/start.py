"""What starting costs: the embedded model's answer, importing, and help, each beside a plain Python process in turn.

python benchmarks/peers/start.py [--turns 5]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from comparison import header, keep, options, show, spread
from turns import interleaved, median, ratio

SIGN = Path(__file__).parents[2] / "examples" / "sign.png"


def process(command: Sequence[str]) -> Callable[[], float]:
    """Seconds of one process, start to end."""

    def run() -> float:
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started

    return run


def main() -> None:
    given = options(__doc__).parse_args()
    header({})
    vitrail = shutil.which("vitrail", path=str(Path(sys.executable).parent)) or "vitrail"
    plain, torch = [sys.executable, "-c", "pass"], [sys.executable, "-c", "import torch"]
    pairs = {
        "vitrail ask examples/sign.png": (
            [vitrail, "ask", str(SIGN), "What does it say?"],
            torch,
            "import torch",
        ),
        "import vitrail": ([sys.executable, "-c", "import vitrail"], plain, "pass"),
        "vitrail --help": ([vitrail, "--help"], plain, "pass"),
    }
    for name, (ours, other, called) in pairs.items():
        sides = {"ours": process(ours), "plain": process(other)}
        for side in sides.values():
            side()
        found = interleaved(sides, given.turns)
        times = ratio(found, "ours", "plain")
        print(
            f"{name}: {show(median(found['ours']))}, python -c '{called}' {show(median(found['plain']))}: {spread(times)}",
            flush=True,
        )
        keep(given.out, {"what": name, "beside": called, "times": times})


if __name__ == "__main__":
    main()
