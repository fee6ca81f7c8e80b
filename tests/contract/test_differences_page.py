"""docs/differences.md agrees with the lists that tests keep exact, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.contract.differences import DEFAULT_VALUES, DIFFERENCES
from vitrail._elsewhere import ELSEWHERE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "differences.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))
LISTS = ("Call forms", "Default values", "Parameters that are refused", "Names that are elsewhere")


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table."""
    section = PAGE[PAGE.index(f"\n## {title}\n") :].split("\n## ")[1]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def plain(cell: str) -> str:
    return cell.strip("` ")


@cache
def defined_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[f"{path}::{name}" for path, name in NAMED])
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert name in defined_in(path)


def test_every_difference_has_a_test() -> None:
    titles = re.findall(r"^## (.+)$", PAGE, re.M)
    assert set(LISTS) < set(titles)
    for title in titles:
        if title in LISTS:
            continue
        assert rows(title), title
        for row in rows(title):
            assert len(row) == 2 and re.fullmatch(r"`[\w/]+\.py::\w+`", row[1]), row


def test_call_forms_of_the_page_are_those_of_the_list() -> None:
    found = [(plain(where), plain(change), reason) for where, change, reason in rows("Call forms")]
    assert found == [(d.where, d.change, d.reason) for d in DIFFERENCES]


def test_default_values_of_the_page_are_those_of_the_list() -> None:
    found = [tuple(plain(cell) for cell in row) for row in rows("Default values")]
    assert found == [(d.config, d.path, repr(d.theirs), repr(d.ours), d.reason) for d in DEFAULT_VALUES]


def test_names_that_are_elsewhere_are_those_of_the_program() -> None:
    found = {
        name: advice
        for names, advice in rows("Names that are elsewhere")
        for name in re.findall(r"`(\w+)`", names)
    }
    assert found == ELSEWHERE
