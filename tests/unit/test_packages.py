"""tests/packages.py and tests/markers.py: what is skipped, with which words, and which markers a place gives."""

from __future__ import annotations

import pytest

from tests import packages


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MISSING", {"trl"})


@pytest.mark.parametrize(
    "fault",
    [
        ModuleNotFoundError("No module named 'trl'", name="trl"),
        ModuleNotFoundError("No module named 'trl'", name="trl.trainer"),
        pytest.skip.Exception("could not import 'trl': No module named 'trl'"),
    ],
)
def test_skip_missing_library_says_what_to_install(missing: None, fault: BaseException) -> None:
    wrapped = RuntimeError("collecting")
    wrapped.__cause__ = fault
    for error in (fault, wrapped):
        with pytest.raises(pytest.skip.Exception, match=r"trl is not installed: pip install -e '\.\[test\]'"):
            packages.skip_if_missing(error)


def test_skip_any_other_fault_stays(missing: None) -> None:
    for error in (
        AssertionError("trl"),
        ModuleNotFoundError("x", name="peft"),
        pytest.skip.Exception("no GPU"),
    ):
        packages.skip_if_missing(error)


def test_markers_follow_from_the_place(request: pytest.FixtureRequest) -> None:
    assert {mark.name for mark in request.node.iter_markers()} == {"quick"}
