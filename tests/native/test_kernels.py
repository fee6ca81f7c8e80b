"""The kernels of each area, tested in C++ (AREA_test.cpp): every instruction set here against the portable one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.native import harness
from vitrail.ops.cpu import library

AREAS = ("attention", "dense", "quant", "rows", "encode")

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels were built")


def compiled(area: str, folder: Path) -> Path:
    """The test program of an area, linked against the library in use; skips where it cannot be compiled."""
    native = harness.build_module()
    try:
        compiler = native.compiler()
    except native.CompilerError as error:
        pytest.skip(str(error))
    program = folder / f"{area}_test"
    command = [
        *compiler,
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        f"-I{native.SOURCES}",
        str(harness.HERE / f"{area}_test.cpp"),
        f"-L{library._FOLDER}",
        "-lvitrail",
        f"-Wl,-rpath,{library._FOLDER}",
    ]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return program


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_kernels_of_an_area_on_every_instruction_set_agree_with_the_portable_ones(
    area: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [compiled(area, tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
