"""No module imports itself through others: imports inside functions and for type checkers count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import vitrail

ROOT = Path(vitrail.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, known: frozenset[str], module: str, *, is_package: bool) -> Iterator[str]:
    """Every module of `known` that is named by an import anywhere in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package]
            source = ".".join([*(above if node.level else []), *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner in known or source in known:
                    yield inner if inner in known else source


def import_graph() -> dict[str, set[str]]:
    files = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
    known = frozenset(files)
    return {
        module: set(
            imports(
                ast.parse(path.read_text(encoding="utf-8")),
                known,
                module,
                is_package=path.name == "__init__.py",
            )
        )
        for module, path in files.items()
    }


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the modules of each strongly connected component of more than one, and those that import themselves."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in number:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], number[target])
        if low[module] == number[module]:
            component = [stack.pop()]
            while component[-1] != module:
                component.append(stack.pop())
            if len(component) > 1 or module in graph[module]:
                found.append(sorted(component))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def test_cycles_finds_each_one() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert cycles(graph) == [["a", "b", "c"], ["f"]]


def test_imports_counts_functions_type_checking_and_relative_ones() -> None:
    code = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from p.a import Name
def f():
    from p import b
    import p.c
    from .d import thing
    from . import e
"""
    known = frozenset({"p", "p.a", "p.b", "p.c", "p.d", "p.e", "p.module"})
    found = set(imports(ast.parse(code), known, "p.module", is_package=False))
    assert found == {"p.a", "p.b", "p.c", "p.d", "p.e"}
    inside = set(imports(ast.parse("from . import e"), known, "p", is_package=True))
    assert inside == {"p.e"}


@pytest.mark.slow
def test_import_graph_has_no_cycle() -> None:
    graph = import_graph()
    assert sum(map(len, graph.values())) > 500
    assert cycles(graph) == []
