"""The second process: answers, limits, ends by the clock, by a crash and with its parent, in threads and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrail
from vitrail.errors import UnsupportedError
from vitrail.files import worker_process
from vitrail.files.worker_pool import WorkerPool
from vitrail.files.worker_process import WorkerEndedError, WorkerProcess

SOURCE = """\
import os
from vitrail.files.worker_process import serve

def answer(request):
    word, _, rest = request.decode().partition(" ")
    if word == "pid":
        return str(os.getpid()).encode()
    if word == "hang":  # in one call that no Python thread interrupts
        a = b = []
        for _ in range(60):
            a, b = [a, a], [b, b]
        return str(a == b).encode()
    if word == "crash":
        os.abort()
    if word == "environment":
        return "\\n".join(os.environ).encode()
    if word == "fill":
        try:
            return str(len(bytearray(int(rest)))).encode()
        except MemoryError:
            return b"no memory"
    if word == "print":
        print("a frame?")
    return b"x" * int(rest or 0)

def main():
    serve(answer, 1 << 30)
"""
ROOT = str(Path(vitrail.__file__).parents[1])


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    (tmp_path / "toy_worker").mkdir()
    (tmp_path / "toy_worker" / "__init__.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = WorkerProcess(
        "toy_worker", ("toy_worker",), answer_bytes=1 << 20, work="toys are played with", advice="sleep"
    )
    yield worker
    worker.stop()


def gone(pid: int) -> bool:
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.01)
    return False


def test_one_process_answers_all_threads(worker: WorkerProcess) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.extend(worker.ask(b"pid", 30) for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and len(set(found)) == 1
    assert len(worker.ask(b"x 1048576", 30)) == 1 << 20
    assert worker.ask(b"print 1", 30) == b"x"
    assert worker.ask(b"pid" + b" " * 5_000_000, 30) == found[0]


def test_what_does_not_answer_is_stopped_and_started_again(worker: WorkerProcess) -> None:
    before = worker.ask(b"pid", 30)
    with pytest.raises(WorkerEndedError) as stopped:
        worker.ask(b"hang", 0.3)
    assert stopped.value.timed_out
    with pytest.raises(WorkerEndedError) as crashed:
        worker.ask(b"crash", 30)
    assert not crashed.value.timed_out
    if os.name == "posix":
        assert crashed.value.status == -signal.SIGABRT
    with pytest.raises(WorkerEndedError):
        worker.ask(b"x 1048577", 30)  # a longer answer than may come back
    assert worker.ask(b"pid", 30) != before
    process = worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert worker.ask(b"x 1", 30) == b"x"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept on Linux")
def test_memory_is_limited(worker: WorkerProcess) -> None:
    assert worker.ask(b"fill 1000000", 30) == b"1000000"
    assert worker.ask(b"fill 1100000000", 30) == b"no memory"


def test_the_environment_stays_at_home(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "HF_TOKEN" not in worker.ask(b"environment", 30).decode().split()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_with_its_parent(worker: WorkerProcess, tmp_path: Path, busy: bool) -> None:
    """Killed, so that no handler runs; started by a thread that has ended long before."""
    program = f"""
import sys, threading
sys.path[:0] = {[ROOT, str(tmp_path)]}
from vitrail.files.worker_process import WorkerProcess
worker = WorkerProcess("toy_worker", ("toy_worker",), answer_bytes=100, work="x", advice="x")
def start(): print(worker.ask(b"pid", 60).decode(), flush=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
if {busy}:
    threading.Thread(target=worker.ask, args=(b"hang", 60), daemon=True).start()
sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdin is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3 if busy else 0)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    assert gone(pid)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_forked_child_starts_its_own(worker: WorkerProcess) -> None:
    before = worker.ask(b"pid", 30)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, worker.ask(b"pid", 30))
        finally:
            worker.stop()
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    other = os.read(read, 100)
    os.close(read)
    assert other and other != before
    assert worker.ask(b"pid", 30) == before


def test_without_processes_it_is_said(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(
        UnsupportedError, match="toys are played with by a second Python process, and it could not"
    ):
        worker.ask(b"pid", 30)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(UnsupportedError, match="No such file"):
        worker.ask(b"pid", 30)


def test_stop_does_not_wait_for_an_answer(worker: WorkerProcess) -> None:
    ends: list[WorkerEndedError] = []

    def wait() -> None:
        try:
            worker.ask(b"hang", 60)
        except WorkerEndedError as error:
            ends.append(error)

    thread = threading.Thread(target=wait)
    worker.ask(b"pid", 30)
    thread.start()
    time.sleep(0.1)
    worker.stop()
    thread.join(20)
    assert len(ends) == 1 and not ends[0].timed_out


def test_one_that_cannot_start_is_said() -> None:
    worker = WorkerProcess("vitrail.no_such_module", (), answer_bytes=1, work="nothing is done", advice="try")
    with pytest.raises(UnsupportedError, match="could not be started"):
        worker.ask(b"", 30)
    assert worker in worker_process._all


# What images need


GRACE = "from vitrail.files import worker_process\nworker_process._GRACE = 0.2\n"
FREE = (
    SOURCE.replace("serve(answer, 1 << 30)", "serve(answer)")
    .replace(
        """    if word == "print":""",
        """    if word == "keep":
        kept.append(bytearray(int(rest)))
        return b"kept"
    if word == "spin":
        import signal
        signal.setitimer(signal.ITIMER_REAL, 0)  # as native code that has taken over could
        while True: pass
    if word == "print":""",
    )
    .replace("def answer", GRACE + "kept = []\n\ndef answer")
)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    """Of processes whose memory each request limits."""
    (tmp_path / "free_worker").mkdir()
    (tmp_path / "free_worker" / "__init__.py").write_text(FREE)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = WorkerPool("free_worker", ("free_worker",), answer_bytes=9, work="x", advice="x")
    yield pool
    for worker in pool._idle:
        worker.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept on Linux")
def test_memory_of_a_request_is_beyond_what_the_process_has(pool: WorkerPool) -> None:
    with pool.worker() as worker:
        for most in (16 << 20, 64 << 20, 16 << 20):
            assert worker.ask(f"fill {most - (1 << 20)}".encode(), 30, memory=most).isdigit()
            assert worker.ask(f"fill {most + (64 << 20)}".encode(), 30, memory=most) == b"no memory"
        first = worker.ask(b"pid", 30)
        assert worker.ask(b"keep 100000000", 30) == b"kept"
        assert worker.ask(b"pid", 30) == first
        assert worker.ask(b"keep 100000000", 30) == b"kept"  # too much to be kept: it ends
        assert worker.ask(b"pid", 30) != first


def test_answer_of_a_request_has_its_own_length(pool: WorkerPool) -> None:
    with pool.worker() as worker:
        assert worker.ask(b"x 10", 30, answer_bytes=10) == b"x" * 10
        with pytest.raises(WorkerEndedError):
            worker.ask(b"x 10", 30)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processor_time_is_limited(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the parent's clock nor the process's ends it."""
    monkeypatch.setattr("threading.Timer.start", lambda timer: None)
    monkeypatch.setattr("threading.Timer.join", lambda timer: None)
    with pool.worker() as worker, pytest.raises(WorkerEndedError) as ended:
        worker.ask(b"spin", 0.1)
    assert ended.value.timed_out and ended.value.status == -signal.SIGXCPU


def test_pool_lends_a_process_to_one_and_keeps_it(pool: WorkerPool) -> None:
    with pool.worker() as one, pool.worker() as other:
        first = one.ask(b"pid", 30)
        assert first != other.ask(b"pid", 30)
        other.stop()
    assert len(pool._idle) == 2
    with pool.worker() as again:
        assert again.ask(b"pid", 30) == first
