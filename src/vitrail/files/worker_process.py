"""WorkerProcess: a second Python process for work that must be stoppable: start, limits, frames, end with its parent.

Requests and answers are bytes behind their length, one at a time. The parent kills the process at a request's time
limit. The process limits its own memory, and ends with its parent (its input is closed; SIGIO while it is busy, in
whatever thread of the parent it was started) and, in any case, by SIGALRM and its limit of processor time: no signal
waits for Python. Work of several requests has a process of a `WorkerPool` to itself.
"""

from __future__ import annotations

import atexit
import os
import signal
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, Final

from vitrail.errors import UnsupportedError

if TYPE_CHECKING:
    import subprocess

_START: Final = "import importlib, sys; sys.path += sys.argv[2:]; importlib.import_module(sys.argv[1]).main()"
_START_SECONDS: Final = 60.0  # on a busy machine
_GRACE: Final = 2.0  # seconds after the parent's deadline until the process ends itself
_READY: Final = b"ready"
_REQUEST: Final = struct.Struct(
    ">QdQ"
)  # bytes that follow; seconds and bytes of memory (0: the process's) for the work
_ANSWER: Final = struct.Struct(">Q?")  # bytes that follow; whether it is the last answer
_GROWTH: Final = 128 << 20  # bytes that a process may keep after an answer; it ends above that
_LONGEST: Final = 1e6  # seconds; within the range of every clock
_MOST_MEMORY: Final = 1 << 60  # bytes; within the range of resource limits
_ONE_THREAD: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}  # of libraries that start threads at import
_KEPT: Final = ("SYSTEMROOT", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # of the parent's environment
_all: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerEndedError(Exception):
    """The process ended before its answer. timed_out: stopped at its time limit."""

    def __init__(self, timed_out: bool, status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.timed_out = timed_out
        self.status = status


class WorkerProcess:
    """A process started on first use, kept, and started again after a stop. Safe with threads and forks.

    Args:
        module: its `main()` calls `serve`.
        packages: imports of the module from outside the standard library.
        answer_bytes: a longer answer ends the process.
        work, advice: purpose and remedy, for the message where no process can be started.
    """

    def __init__(
        self, module: str, packages: Sequence[str], *, answer_bytes: int, work: str, advice: str
    ) -> None:
        self._module, self._packages, self._answer_bytes = module, packages, answer_bytes
        self._work, self._advice = work, advice
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        _all.add(self)

    def ask(
        self, request: bytes, seconds: float, *, memory: int | None = None, answer_bytes: int | None = None
    ) -> bytes:
        """Return the answer to one request.

        Args:
            memory: bytes for the work beyond those of the process; None: the limit of its `serve`.
            answer_bytes: the limit of this answer, instead of the constructor's.

        Raises:
            WorkerEndedError: the process ended, or was stopped at its time limit.
            UnsupportedError: no process can be started.
        """
        most = self._answer_bytes if answer_bytes is None else answer_bytes
        seconds = seconds if seconds < _LONGEST else _LONGEST
        extra = 0 if memory is None else min(max(memory, 1), _MOST_MEMORY)
        with self._lock:
            head = _REQUEST.pack(len(request), seconds, extra)
            return self._exchange(self._started(), (head, request), seconds, most)

    def start(self) -> None:
        """Start the process unless it runs. Raises UnsupportedError."""
        with self._lock:
            self._started()

    def stop(self) -> None:
        """End the process, if any, in any state."""
        process = self._process
        if process is not None:
            process.kill()  # a thread that waits for an answer holds the lock until then
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is None or process.poll() is not None:
            self._stop()
            process = self._start()
        return process

    def _exchange(
        self, process: subprocess.Popen[bytes], sent: Sequence[bytes], seconds: float, most: int
    ) -> bytes:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        try:
            timer.start()
            for part in sent:
                _write(process.stdin, part)
            answer, last = _read(process.stdout, most)
            timer.cancel()
            timer.join()  # a later timer would kill the next request's process
        except (OSError, EOFError) as error:
            timer.cancel()
            status = self._stop(kill=False)
            clocks = [-getattr(signal, name, 0) for name in ("SIGALRM", "SIGXCPU")]
            raise WorkerEndedError(expired.is_set() or (status < 0 and status in clocks), status) from error
        except BaseException as error:  # Ctrl-C in between: the next request finds a new process
            timer.cancel()
            self._stop()
            if isinstance(error, RuntimeError):  # no thread can be started
                raise self._unsupported(error) from error
            raise
        if expired.is_set() or last:
            self._stop()
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        import subprocess

        if not sys.executable or getattr(sys, "frozen", False):
            raise self._unsupported("this program does not say where Python is")
        flags = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
        command = [sys.executable, *flags, "-c", _START, self._module, *_roots(self._packages)]
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _ONE_THREAD
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # no buffers, so no locks that a fork could copy in the locked state
                env=environment,
            )
        except (OSError, NotImplementedError, RuntimeError) as error:
            raise self._unsupported(error) from error
        self._process = process
        try:
            ready = self._exchange(process, (), _START_SECONDS, len(_READY))
        except WorkerEndedError as error:
            raise self._unsupported(error) from error
        if ready != _READY:
            self._stop()
            raise self._unsupported("it does not answer as it should")
        return process

    def _unsupported(self, why: object) -> UnsupportedError:
        return UnsupportedError(
            f"{self._work} by a second Python process, and it could not be started ({why}); {self._advice}"
        )

    def _stop(self, kill: bool = True) -> int:
        """End the process and return its status, 0 without one. kill: False for one that ends by itself."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        from subprocess import TimeoutExpired

        try:
            return process.wait(0 if kill else 1.0)
        except TimeoutExpired:
            process.kill()
        return process.wait()

    def _forget(self) -> None:
        """Drop the parent's process in a forked child, whose end must not depend on this one's pipes."""
        process, self._process, self._lock = self._process, None, threading.Lock()
        if process is not None:
            process.returncode = 0  # no wait for it
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def serve(answer: Callable[[bytes], bytes], memory: int = 0) -> None:
    """Answer requests in the worker process until the input is closed.

    Args:
        memory: bytes that it may have, where a limit can be set; 0: the limit of each request.
    """
    stream, out = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # printed text must not become a frame
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    for what, most in (("AS", memory or None), ("CORE", 0), ("FSIZE", 0), ("NPROC", 0)):
        _limit(what, most, for_good=True)
    watch = Watch(out.fileno())
    said, last, most_kept = _READY, False, _size() + _GROWTH
    try:
        while True:
            _write(out, _ANSWER.pack(len(said), last))
            _write(out, said)
            if last:
                return
            del said
            length, seconds, extra = _REQUEST.unpack(_bytes(stream, _REQUEST.size))
            request = _bytes(stream, length)
            _limit("AS", _size() + extra if extra else sys.maxsize)
            _limit("CPU", int(time.process_time() + seconds + 2 * _GRACE))
            with watch.over(seconds + _GRACE):
                said = answer(request)
            del request
            last = _size() - len(said) > most_kept
    except (EOFError, OSError):  # the parent has ended
        return


class Watch:
    """Ends this process, by a signal, at its time limit or with its parent.

    pipe: the output end, for answers. The system sends SIGIO when the parent has read from it, which is before the next
    request, and when the parent has closed it. On the input pipe the signal for a request could come after the request.
    """

    def __init__(self, pipe: int) -> None:
        self._poll: Any = None
        try:
            import fcntl
            import select

            fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # also sent for every answer
            flags = fcntl.fcntl(pipe, fcntl.F_GETFL)
            fcntl.fcntl(pipe, fcntl.F_SETFL, flags | os.O_ASYNC)
            self._poll = select.poll()
            self._poll.register(pipe, 0)  # a closed pipe only
        except (ImportError, AttributeError, OSError):  # neither Linux nor macOS
            return

    @contextmanager
    def over(self, seconds: float = 0) -> Iterator[None]:
        """Watch the body. seconds: 0: no limit. Raises EOFError if the parent has ended already."""
        if seconds and hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        if self._poll is not None:
            signal.signal(signal.SIGIO, signal.SIG_DFL)
            if self._poll.poll(0):  # closed before the signal was set up
                raise EOFError
        try:
            yield
        finally:
            if self._poll is not None:
                signal.signal(signal.SIGIO, signal.SIG_IGN)
            if seconds and hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)


def _limit(what: str, most: int | None, for_good: bool = False) -> None:
    """Set a limit of this process, where the system has it; for_good: it cannot be raised again."""
    try:
        import resource
    except ImportError:  # Windows
        return
    kind = getattr(resource, f"RLIMIT_{what}", None)
    if kind is None or most is None:
        return
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(OSError, ValueError):  # macOS defines RLIMIT_AS without support for it
        resource.setrlimit(kind, (most, most if for_good else hard))


def _size() -> int:
    """Return this process's bytes of address space, where the system reports them."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # not Linux
        return 0


def _roots(packages: Sequence[str]) -> list[str]:
    """Return the import roots of this package and `packages`: the process has only the standard library's otherwise."""
    from pathlib import Path  # here: unused in the started process

    roots = [str(Path(__file__).parents[2])]
    for name in packages:
        found = find_spec(name)
        if found is not None and found.origin is not None:
            roots.append(str(Path(found.origin).parents[1]))
    return list(dict.fromkeys(roots))


def _write(stream: IO[bytes] | None, data: bytes) -> None:
    rest = memoryview(data)
    while stream is not None and len(rest):
        rest = rest[stream.write(rest) or 0 :]


def _read(stream: IO[bytes] | None, most: int) -> tuple[bytes, bool]:
    """Read the next answer, and whether it is the last."""
    length, last = _ANSWER.unpack(_bytes(stream, _ANSWER.size))
    if length > most:
        raise EOFError(f"{length} bytes; at most {most} are taken")
    return _bytes(stream, length), last


def _bytes(stream: IO[bytes] | None, length: int) -> bytes:
    parts, missing = [], length
    while missing:
        part = stream.read(min(missing, 1 << 20)) if stream is not None else b""
        if not part:
            raise EOFError
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _stop_all() -> None:
    for worker in list(_all):
        worker.stop()


def _forget_all() -> None:
    for worker in list(_all):
        worker._forget()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
