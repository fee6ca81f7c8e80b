"""`vitrail bench load`: write a checkpoint of random weights and time new processes up to their first token."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vitrail.bench.geometries import params_of
from vitrail.bench.machine import this_machine
from vitrail.bench.random_model import random_model
from vitrail.bench.report import Report, Setting
from vitrail.errors import VitrailError

POSITIONS = 16  # prompt length
_IMPORT = "import torch"


def bench_load(setting: Setting, folder: str | None = None) -> Report:
    """Write a checkpoint to a temporary folder inside `folder` (None: the system's), start processes in turn, remove it.

    A process that loads and reads a prompt is compared with one that only imports torch. Each process reads the prompt once,
    so the time includes faulting in the file's pages.
    """
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(dir=folder, prefix="vitrail-bench-") as place:
        setting.progress("writing the checkpoint")
        size = _write(setting, place)
        setting.progress("a first turn, which fills the system's cache of files")
        _turn(place, threads)
        found = [_turn(place, threads) for _ in setting.turns()]
    more: dict[str, Any] = {"file_bytes": size, "positions": POSITIONS}
    for name in found[0]:
        more[name] = statistics.median(one[name] for one in found)
    return Report("load", setting, this_machine(), [], more)


def _write(setting: Setting, place: str) -> int:
    """Write the checkpoint; return the bytes of its weights."""
    model = random_model(params_of(setting.geometry, setting.layers), setting.format)
    model.save_pretrained(place)
    return sum(file.stat().st_size for file in Path(place).glob("*.safetensors"))


def _turn(place: str, threads: int) -> dict[str, float]:
    """Run one process of each kind; return seconds, and the memory in bytes of the one that loads."""
    alone = _run([sys.executable, "-c", _IMPORT])[0]
    whole, output = _run(
        [sys.executable, "-m", "vitrail.bench.first_token", place, str(POSITIONS), str(threads)]
    )
    inside = json.loads(output)
    return {
        "import_torch_process_seconds": alone,
        "first_token_process_seconds": whole,
        "load_seconds": inside["load"],
        "first_prefill_seconds": inside["first_prefill"],
        "of_import_and_prefill": whole / (alone + inside["first_prefill"]),
        "anonymous_bytes": inside["anonymous"] or 0,
        "mapped_bytes": inside["mapped"] or 0,
    }


def _run(command: list[str]) -> tuple[float, str]:
    """Run a command; return its seconds and output. Raises VitrailError with the last line if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - started
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise VitrailError(
            f"the process that was to be measured ended with status {done.returncode}: {last[0]}"
        )
    return spent, done.stdout
