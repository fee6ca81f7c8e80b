"""Modules of 0.1.0 that have moved: the old name is the new module, and says so once."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from vitrail._moved import MOVED


@pytest.mark.parametrize("old", sorted(name for name, new in MOVED.items() if new))
def test_moved_module_old_name_is_the_new_module(old: str) -> None:
    sys.modules.pop(f"vitrail.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"vitrail\.{MOVED[old]};"):
        found = import_module(f"vitrail.{old}")
    assert found is import_module(f"vitrail.{MOVED[old]}")


def test_moved_module_first_import_warns_once_where_it_stands() -> None:
    code = (
        "from vitrail.inputs.formats import build_prompt\n"
        "from vitrail.inputs.formats.versions import FORMATS\n"
        "from vitrail.inputs.formats import FORMATS as again\n"
        "from vitrail.prompts.builtin.build import build_prompt as new\n"
        "assert build_prompt is new and again is FORMATS\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("vitrail.inputs.formats has moved to vitrail.prompts.builtin;") == 1


def test_moved_module_unknown_name_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("vitrail.inputs.nothing")
