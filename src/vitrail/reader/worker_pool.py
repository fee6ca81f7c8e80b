"""Pool of worker processes that read files in parallel, each with its share of the cores. The worker: worker.py.

On a few images the embedded model does not use a second core: its matrices are small, and much of a step is not
arithmetic. Processes share nothing and never wait for each other, but each takes seconds to start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vitrail.errors import CheckpointError, UnsupportedError, VitrailError
from vitrail.reader.files import FileReading, Reading
from vitrail.reader.worker import written_limits

WORTH = 40
"""Files per process below which starting one does not pay."""
MOST = 8
"""Maximum number of processes; each holds a model and a few hundred megabytes of PyTorch."""
SHARE = 128
"""Maximum number of files in one request to a process."""
_START = (
    "import sys; sys.path[:] = sys.argv[3:]; from vitrail.reader.worker import main; main(*sys.argv[1:3])"
)


def cores() -> int:
    """Return PyTorch's default thread count: OMP_NUM_THREADS, else the cores available to this process."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def useful_processes(files: int) -> int:
    """Return the number of processes that reads `files` files soonest."""
    return max(1, min(files // WORTH, cores(), MOST))


def read_apart(
    names: Sequence[str], processes: int, model: Path | None = None
) -> Generator[tuple[int, FileReading], None, None]:
    """Read files in `processes` processes; yield (index, reading) as they complete.

    Closing the iterator ends the processes. Limits and policy (`image_request`) are those where it is first asked for one;
    each file counts for itself.

    Raises:
        VitrailError: the model cannot be loaded, or a process ended early.
    """
    shares = _shares(names, processes)
    with _started(processes, model) as workers:
        answers: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        given: list[list[int]] = []
        for number, process in enumerate(workers):
            given.append([])
            threading.Thread(target=_listen, args=(number, process, answers), daemon=True).start()
            _give(process, given, number, shares, names)
        while any(given):
            number, line = answers.get()
            if not given[number]:
                continue  # this process had no work left and ended
            yield from zip(given[number], _understand(line, workers[number]), strict=True)
            _give(workers[number], given, number, shares, names)


def _shares(names: Sequence[str], processes: int) -> list[list[int]]:
    """Divide file indices into equal shares, last one first, so that adjacent files are read in parallel."""
    rounds = max(1, -(-len(names) // (processes * SHARE)))
    size = -(-len(names) // rounds)
    order = list(range(len(names)))
    shares = []
    for start in range(0, len(names), size):
        together = sorted(order[start : start + size], key=lambda index: _bytes(names[index]))
        shares += [sorted(together[k::processes]) for k in range(processes)]
    return [share for share in reversed(shares) if share]


def _bytes(name: str) -> int:
    """Return a file's size, a rough measure of reading time; 0 if unknown."""
    try:
        return os.stat(name).st_size
    except (OSError, ValueError):
        return 0


def _give(process: subprocess.Popen[bytes], given: list[list[int]], number: int, shares: list[list[int]],
          names: Sequence[str]) -> None:  # fmt: skip
    """Send the next share to a process, or close its input."""
    given[number] = shares.pop() if shares else []
    if process.stdin is None:
        return
    try:
        if given[number]:
            line = json.dumps([names[index] for index in given[number]])
            process.stdin.write(line.encode("ascii") + b"\n")
            process.stdin.flush()
        else:
            process.stdin.close()
    except OSError:  # the process has ended; _listen reports it
        return


def _listen(number: int, process: subprocess.Popen[bytes], answers: SimpleQueue[tuple[int, bytes]]) -> None:
    """Put a process's output lines into the queue, and an empty one when it ends."""
    if process.stdout is not None:
        for line in process.stdout:
            answers.put((number, line))
    answers.put((number, b""))


def _understand(line: bytes, process: subprocess.Popen[bytes]) -> Iterator[FileReading]:
    if not line.endswith(b"\n"):
        raise VitrailError(
            f"a reading process ended before its images were read (status {process.wait()}); perhaps memory ran "
            "out: try --processes 1, and fewer images at a time."
        )
    answer: dict[str, Any] = json.loads(line)
    if "fault" in answer:
        raise CheckpointError(str(answer["fault"]))
    for pages, paged, error in answer["files"]:
        yield FileReading(tuple(Reading(*page) for page in pages), paged, error)


@contextmanager
def _started(count: int, model: Path | None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start worker processes with their share of the cores; kill them on exit."""
    if not sys.executable:
        raise UnsupportedError("this program does not say where Python is; use --processes 1.")
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // count))}
    limits = written_limits()
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-c", _START, "" if model is None else str(model), limits, *sys.path],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    start_new_session=True,  # Ctrl-C goes to the parent only
                )
            )
        yield workers
    finally:
        for process in workers:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children (a PDF page is rendered in one)."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):  # already ended
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):  # flushing to a dead process fails
            if stream is not None:
                stream.close()
