"""The markers that follow from where a test is and what it takes; how xdist shares tests out. A pytest plugin; no tests."""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType
from typing import Any

import pytest

from tests.packages import PACKAGES

# What these files make once, or import, takes seconds.
TOGETHER = ("parity/test_mistral_tokenizer.py", "parity/test_lora.py", "unit/test_house_rules.py")
# Versions whose tokenizer is made from 19 MB of JSON; of these only v13 is tried without slow tests too.
LARGE_VERSIONS = ("v7-tekken", "v11", "v15")
QUICK_FOLDERS, NOT_QUICK = {"contract", "unit"}, ("slow", "soak", "parity", "native")
# Files whose tests are short and together take seconds: processes, a stand-in for the hub, the whole of src read.
NOT_QUICK_FILES = {
    f"test_{name}.py"
    for name in (
        "devices", "docs", "engine_seam", "fetch", "house_rules", "hub", "hub_loading", "image_policy", "image_request",
        "imports", "moved_modules", "own_checkpoint", "pdf", "python_door", "snippets", "template", "template_limits",
        "tokenizer_choice", "training_run", "worker_process",
    )
}  # fmt: skip
VERSION = re.compile(r"[\[-](v\d+(?:m1)?(?:-tekken)?)(?=[-\]])")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one tokenizer's version run in one process, which then reads its large file once; some files as a whole.

    xdist's own groups are names that it writes into the tests' ids, and pytest 9.2 keeps no such change.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            version = VERSION.search(nodeid)
            return file if file.endswith(TOGETHER) else version[1] if version else nodeid

    return Scheduler(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Set the markers that follow from where a test is and what it takes (pyproject.toml says what they mean)."""
    for item in items:
        *folders, file = item.nodeid.partition("::")[0].split("/")
        for name in ("golden", "native", "parity"):
            if name in folders or file.startswith(f"test_{name}_"):
                item.add_marker(name)
        if libraries_of(item.module):
            item.add_marker("parity")
        if "hub" in item.fixturenames:
            item.add_marker("network_fake")
        if hasattr(item, "callspec") and item.callspec.params.get("version") in LARGE_VERSIONS:
            item.add_marker("slow")
        quick = QUICK_FOLDERS & set(folders) and file not in NOT_QUICK_FILES
        if quick and not any(item.get_closest_marker(name) for name in NOT_QUICK):
            item.add_marker("quick")


@cache
def libraries_of(module: ModuleType) -> set[str]:
    """Which of PACKAGES a file of tests compares with: what it imports, and what the pairs of models do."""
    values = vars(module).values()
    names = {
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        for value in values
    }
    found = PACKAGES.keys() & {str(name).partition(".")[0] for name in names}
    return found | ({"transformers"} if "tests.parity.pairs" in names else set())
