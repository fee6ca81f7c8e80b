"""The kernels' threads, tested in C++ (pool_test.cpp): every chunk once, nested, together, starved, forked, and no race."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.native import harness

TESTS = ("once", "nested", "callers", "threads", "starved", "idle", "fork")


def compiled(folder: Path, *flags: str) -> Path:
    """The test program; skips where it cannot be compiled."""
    native = harness.build_module()
    try:
        compiler = native.compiler()
    except native.CompilerError as error:
        pytest.skip(str(error))
    program = folder / "pool_test"
    sources = [harness.HERE / "pool_test.cpp", native.SOURCES / "pool.cpp"]
    command = [
        *compiler,
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-pthread",
        f"-I{native.SOURCES}",
        *flags,
        *map(str, sources),
    ]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    if done.returncode and "-fsanitize=thread" in flags:
        pytest.skip(f"no thread sanitizer: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return program


def run(program: Path, name: str) -> None:
    done = subprocess.run([program, name], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("pool"), "-O2")


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_pool(program: Path, name: str) -> None:
    run(program, name)


@pytest.mark.slow
def test_the_thread_sanitizer_finds_no_race(tmp_path: Path) -> None:
    program = compiled(tmp_path, "-O1", "-g", "-fsanitize=thread")
    for name in TESTS:
        if name != "fork":  # a sanitized process may not start threads after a fork
            run(program, name)
