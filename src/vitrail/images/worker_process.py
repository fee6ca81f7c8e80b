"""A process of this program's own that does one kind of work within limits, dies with its parent, and answers in frames.

Both ends are here; what the work is, its module says. A frame is eight bytes of length and that many bytes: nothing is
unpickled, and the side that reads says how long a frame may be before it makes room for it.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from queue import SimpleQueue
from typing import IO, Final

from vitrail.errors import UnsupportedError

_LENGTH: Final = struct.Struct(">Q")
_START: Final = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from vitrail.images.worker_process import begin; begin(*sys.argv[1:4])"
)
_KILL_WITH_PARENT: Final = 1  # Linux: PR_SET_PDEATHSIG of prctl


class WorkerProcess:
    """The parent's end.

    Args:
        module: of the work; its function `serve(receive, send)` runs in the process.
        memory: bytes of address space that the work may take (not on Windows).
        seconds: of processor time (not on Windows); the deadline of an exchange is `until`'s.
    """

    def __init__(self, module: str, *, memory: int, seconds: float) -> None:
        if not sys.executable:
            raise UnsupportedError(
                "this work is done by a second Python process, and this program does not say where Python is"
            )
        self.expired = False
        # Libraries for matrices reserve memory for every core as they start.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, module, str(memory), str(seconds), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @contextmanager
    def until(self, seconds: float) -> Iterator[None]:
        """An exchange that takes at most so long: then the process is killed, and `receive` raises EOFError."""

        def expire() -> None:
            self.expired = True
            self._process.kill()

        timer = threading.Timer(max(seconds, 0.0), expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def send(self, frame: bytes) -> None:
        """Raises EOFError when the process has ended."""
        stream = self._process.stdin
        if stream is None:
            raise EOFError
        try:
            stream.write(_LENGTH.pack(len(frame)))
            stream.write(frame)
            stream.flush()
        except OSError as error:
            raise EOFError from error

    def receive(self, most: int) -> bytes:
        """The next frame. Raises EOFError when the process has ended, or its frame is longer than `most` bytes."""
        frame = None if self._process.stdout is None else _read_frame(self._process.stdout, most)
        if frame is None:
            raise EOFError
        return frame

    def close(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was left to write has no reader
                if stream is not None:
                    stream.close()
        self._process.wait()


def begin(module: str, memory: str, seconds: str) -> None:
    """The child's end: serve until the parent closes the pipe or dies."""
    _die_with_parent()
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the frames
    frames: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, frames), daemon=True).start()
    serve = import_module(module).serve
    _limit(int(memory), float(seconds))

    def send(frame: bytes | memoryview) -> None:
        target.write(_LENGTH.pack(len(frame)))
        target.write(frame)
        target.flush()

    try:
        serve(frames.get, send)
    finally:
        os._exit(0)  # `_listen` waits in a read, for which an orderly end would wait too


def _listen(source: IO[bytes], frames: SimpleQueue[bytes]) -> None:
    """Put the parent's frames into the queue; end the process, whatever it does, when the pipe is closed."""
    while (frame := _read_frame(source)) is not None:
        frames.put(frame)
    os._exit(0)


def _read_frame(stream: IO[bytes], most: int | None = None) -> bytes | None:
    """The next frame; None where there is no whole one, or it is longer than it may be."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if most is not None and length > most:
        return None
    frame = stream.read(length)
    return frame if len(frame) == length else None


def _die_with_parent() -> None:
    """Let Linux kill this process with the thread that started it: a call in C may keep `_listen` from running."""
    if sys.platform != "linux":
        return
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)


def _limit(memory: int, seconds: float) -> None:
    """Bound what the work may take from here on, beyond what this process has."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    used = 0
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    processor = int(time.process_time() + seconds) + 2
    for what, most in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_CPU, processor),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(OSError, ValueError):  # a system that does not know this limit
            resource.setrlimit(what, (most, most))
