"""The other process of a comparison: requests go in and seconds come out, one JSON object a line. Needs no package.

A peer may live in another Python environment than Vitrail. While one side works the other waits in a read, so turns are
fair; each side keeps its model and its threads between requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Handler = Callable[..., Mapping[str, Any]]
CLOCK = "BENCH_CLOCK"  # "cpu": seconds of a process's own work, for one thread on a machine that others use
clock = time.process_time if os.environ.get(CLOCK) == "cpu" else time.perf_counter


class Worker:
    """A script of this folder, run by `python`; `ask` sends it work."""

    def __init__(self, python: str, script: str, *arguments: object) -> None:
        command = [python, str(HERE / script), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about: dict[str, Any] = self._read()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries write of their own accord
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"{self._process.args} ended with status {self._process.wait()}")


def serve(about: Mapping[str, Any], handlers: Mapping[str, Handler]) -> None:
    """Say what this is, then answer until the input ends."""
    print(json.dumps(dict(about)), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(dict(handlers[request.pop("do")](**request))), flush=True)
