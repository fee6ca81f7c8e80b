"""A pytest plugin: the kernels of another processor for the whole run. See harness.py; no tests of its own.

Emulation is slow: only the emulated instruction set is tried, on x86 beside the portable code, and with few examples.
"""

import os
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

from tests.native import harness, remote
from vitrail.ops.cpu import library

EXAMPLES = 5

_processor = os.environ[harness.ENVIRONMENT]
_folder = harness.folder_of(_processor)
if _processor == "neon":
    remote.use(_folder)
else:
    library._FOLDER = _folder
library.available = lambda: ("neon",) if _processor == "neon" else ("portable", _processor)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """At most EXAMPLES of hypothesis's examples for each test."""
    for item in items:
        test: Any = getattr(item, "obj", None)
        if is_hypothesis_test(test):
            test = getattr(test, "__func__", test)
            old = test._hypothesis_internal_use_settings or settings()
            if old.max_examples > EXAMPLES:
                test._hypothesis_internal_use_settings = settings(old, max_examples=EXAMPLES)
