"""A test that needs a library which is not installed is skipped, with what to install. A pytest plugin; no tests.

Nothing is entered test by test: a test, a fixture or a whole file that ends because one of PACKAGES cannot be imported is
skipped. With the extra `test` all of them are there, and nothing is.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, NoReturn

import pytest

# Importable name and extra of this project that brings it.
PACKAGES = {
    "accelerate": "test",
    "bitsandbytes": "test",
    "cv2": "test",
    "datasets": "test",
    "gguf": "bench",
    "hatchling": "dev",
    "importlinter": "dev",
    "jsonschema": "test",
    "mistral_common": "test",
    "peft": "test",
    "pyarrow": "test",
    "pypdfium2": "dev",
    "requests": "test",
    "sentencepiece": "test",
    "transformers": "test",
    "trl": "test",
}
MISSING = {name for name in PACKAGES if importlib.util.find_spec(name) is None}


def skip_if_missing(fault: BaseException | None) -> None:
    """Skip where the reason of a failure, or of importorskip's skip, is that one of MISSING cannot be imported."""
    while fault is not None:
        name = fault.name if isinstance(fault, ImportError) else None
        if isinstance(fault, pytest.skip.Exception):
            found = re.match(r"could not import '([\w.]+)'", fault.msg or "")
            name = found and found[1]
        if name and name.partition(".")[0] in MISSING:
            skip(name.partition(".")[0])
        fault = fault.__cause__ or fault.__context__


def skip(name: str) -> NoReturn:
    pytest.skip(f"{name} is not installed: pip install -e '.[{PACKAGES[name]}]'", allow_module_level=True)


class TestFile(pytest.Module):
    """A file of tests that is skipped as a whole where it cannot be imported for want of a library."""

    def collect(self) -> Iterable[Any]:
        try:
            return super().collect()
        except (self.CollectError, pytest.skip.Exception) as fault:
            skip_if_missing(fault)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return TestFile.from_parent(parent, path=module_path)


def _skipping() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except (Exception, pytest.skip.Exception) as fault:
        skip_if_missing(fault)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    return (yield from _skipping())
