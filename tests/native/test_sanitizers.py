"""native/sanitize.py on the smallest part of the kernels: it finds what is there, and finds nothing in them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.native import harness

FAULT = """
import ctypes
import torch
from vitrail.ops.cpu import library

def test_rows_of_more_numbers_than_there_are():
    x, y = torch.ones(2, 8), torch.ones(2, 8)
    addresses = [tensor.data_ptr() for tensor in (x, x, y)]
    kernel = library.function(
        "vt_rms_norm", *[ctypes.c_void_p] * 3, ctypes.c_int32, *[ctypes.c_int64] * 2, ctypes.c_float
    )
    library.library()
    with library.using("portable"):
        kernel(*addresses, 0, 2, 16, 1e-5)
"""


def sanitize() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vitrail_sanitize", harness.ROOT / "native" / "sanitize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_rows_run_clean_under_the_sanitizers_which_find_a_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = sanitize()
    try:
        preload = module.build_library(tmp_path, ("rows",))
    except module.Missing as reason:
        pytest.skip(str(reason))
    assert (
        module.run_tests(tmp_path, preload, ["-m", "not slow", "tests/invariants/test_native_rows.py"]) == 0
    )
    assert "the sanitizers found nothing." in capfd.readouterr().err
    fault = tmp_path / "test_fault.py"
    fault.write_text(FAULT)
    assert module.run_tests(tmp_path, preload, [str(fault)]) == 1
    assert "heap-buffer-overflow" in capfd.readouterr().err
