"""Rules of the house that a tool cannot check: one attention, one matmul, no concatenated cache, short files."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

import vitrail

ROOT = Path(vitrail.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


@cache
def source(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def code(name: str) -> str:
    """The file without comments and strings."""
    kept = []
    for token in tokenize.generate_tokens(io.StringIO(source(name)).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING):
            kept.append("\n" if token.type == tokenize.NEWLINE else token.string)
    return " ".join(kept)


def files_with(pattern: str) -> set[str]:
    return {name for name in FILES if re.search(pattern, code(name))}


def test_there_are_files() -> None:
    assert len(FILES) > 40


def test_one_matrix_product_with_a_weight() -> None:
    assert files_with(r"\b(F|functional) \. embedding \(") == {"ops/linear.py"}
    # The second one has the definitions of the operators that the first one calls.
    assert files_with(r"\b(F|functional) \. linear \(") == {"ops/linear.py", "ops/native_dense.py"}


def test_one_attention() -> None:
    assert files_with(r"\bscaled_dot_product_attention\b") == {"ops/sdpa.py"}
    assert files_with(r"\bMultiheadAttention\b|\bflex_attention\b") == set()


def test_a_cache_is_never_concatenated() -> None:
    keys = r"\btorch \. (cat|concat|concatenate|hstack) \( [\[(][^\])]*\b(k|v|key|keys|value|values|past)\b"
    assert files_with(keys) == set()


def test_no_other_engine_and_no_code_from_data() -> None:
    assert files_with(r"\b(import|from) (transformers|accelerate|torchvision|pickle)\b") == set()
    assert files_with(r"\b(import|from) bitsandbytes\b") == {"quant/bitsandbytes_cuda.py"}  # for GPUs
    assert files_with(r"\b(?<!\. )(eval|exec|compile) \(") == set()
    assert files_with(r"\btorch \. load \(") <= {"train/state.py"}  # weights_only, its own files
    for name in files_with(r"\btorch \. load \("):
        assert code(name).count("torch . load (") == code(name).count("weights_only = True"), name


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_says_what_it_holds(name: str) -> None:
    lines = source(name).splitlines()
    assert len(lines) <= 500
    tree = ast.parse(source(name))
    assert ast.get_docstring(tree), "the first line is a docstring"
    assert lines[0].startswith('"""')


@pytest.mark.parametrize("name", FILES)
def test_no_bare_except_no_assert_and_print_in_the_command_line_only(name: str) -> None:
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
        assert not isinstance(node, ast.Assert), f"assert in line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not name.startswith("cli/"):
            assert node.func.id != "print", f"print in line {node.lineno}"


@pytest.mark.parametrize("name", FILES)
def test_public_things_have_docstrings(name: str) -> None:
    for node in ast.parse(source(name)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} in line {node.lineno}"
