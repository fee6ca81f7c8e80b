"""Rules of the house that a tool cannot check: one attention, one matmul, no concatenated cache, short files."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

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


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(source(name))


def files_with(pattern: str) -> set[str]:
    return {name for name in FILES if re.search(pattern, code(name))}


def test_there_are_files() -> None:
    assert len(FILES) > 40


def test_one_matrix_product_with_a_weight() -> None:
    assert files_with(r"\b(F|functional) \. embedding \(") == {"ops/linear.py"}
    # The second one has the definitions of the operators that the first one calls.
    assert files_with(r"\b(F|functional) \. linear \(") == {"ops/linear.py", "ops/cpu/dense.py"}


def test_one_attention() -> None:
    assert files_with(r"\bscaled_dot_product_attention\b") == {"ops/reference/attention.py"}
    assert files_with(r"\bMultiheadAttention\b|\bflex_attention\b") == set()


def test_the_model_is_stepped_by_the_runners_only() -> None:
    """One runner with a cache, one without as the reference; nobody else builds a batch by hand."""
    assert files_with(r"\b_?model \. step \(") == {"generate/runner.py", "generate/uncached.py"}
    assert files_with(r"\bForwardBatch \(") == {"ops/batch.py"}


def test_models_import_no_kernels() -> None:
    assert [name for name in files_with(r"\bops \. cpu\b") if name.startswith("model/")] == []


def test_a_cache_is_never_concatenated() -> None:
    keys = r"\btorch \. (cat|concat|concatenate|hstack) \( [\[(][^\])]*\b(k|v|key|keys|value|values|past)\b"
    assert files_with(keys) == set()


def test_no_other_engine_and_no_code_from_data() -> None:
    assert files_with(r"\b(import|from) (transformers|accelerate|torchvision|pickle)\b") == set()
    assert files_with(r"\b(import|from) bitsandbytes\b") == {"quant/bitsandbytes_cuda.py"}  # for GPUs
    assert files_with(r"\b(?<!\. )(eval|exec|compile) \(") == set()
    assert files_with(r"\btorch \. load \(") == set()


def test_every_file_is_short_and_says_what_it_holds() -> None:
    """The first line is a docstring."""
    assert {name: count for name in FILES if (count := len(source(name).splitlines())) > 500} == {}
    assert [name for name in FILES if not source(name).startswith('"""')] == []
    assert [name for name in FILES if not ast.get_docstring(tree(name))] == []


def test_no_bare_except_no_assert_and_print_in_the_command_line_only() -> None:
    faults = []
    for name in FILES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                faults.append(f"{name}:{node.lineno}: bare except")
            elif isinstance(node, ast.Assert):
                faults.append(f"{name}:{node.lineno}: assert")
            elif is_print(node) and not name.startswith("cli/"):
                faults.append(f"{name}:{node.lineno}: print")
    assert faults == []


def is_print(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def test_public_things_have_docstrings() -> None:
    things = [(name, node) for name in FILES for node in tree(name).body]
    assert [
        f"{name}:{node.lineno}: {node.name}"
        for name, node in things
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if not ast.get_docstring(node)
    ] == []


def test_files_that_texts_name_are_there() -> None:
    """`name.py` in docs and docstrings is a file beside the text, or in the package or the repository by its path."""
    root = ROOT.parent.parent
    if not (root / "docs").is_dir():
        pytest.skip("the documents are not installed with the package")
    documents = [root / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md")]
    texts = {path: path.read_text(encoding="utf-8") for path in (*documents, *(root / "docs").glob("*.md"))}
    texts |= {ROOT / name: "\n".join(docstrings(name)) for name in FILES}
    missing = [
        f"{path.relative_to(root)}: {name}"
        for path, text in texts.items()
        for name in re.findall(r"(?<![\w/.*-])((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)\b(?!\()", text)
        if not any((place / name).exists() for place in (path.parent, ROOT, root, root / "benchmarks"))
    ]
    assert not missing, "\n".join(missing)


def docstrings(name: str) -> Iterator[str]:
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def test_headings_of_docs_that_texts_cite_exist() -> None:
    """`docs/NAME.md, "Heading"` in source, tests and C++ names a heading of that page; no other document is cited."""
    root = ROOT.parent.parent
    if not (root / "docs").is_dir():
        pytest.skip("the documents are not installed with the package")
    places = (("src", "*.py"), ("tests", "*.py"), ("native", "*.h"), ("native", "*.cpp"))
    texts = {
        path: path.read_text(encoding="utf-8")
        for folder, glob in places
        for path in (root / folder).rglob(glob)
    }
    cited = [
        (path.relative_to(root).as_posix(), page, heading)
        for path, text in texts.items()
        for page, heading in re.findall(r'\b(docs/[a-z]+\.md), "([^"]+)"', text)
    ]
    assert len({heading for _, _, heading in cited}) > 3
    headings = {page: (root / page).read_text(encoding="utf-8") for page in {page for _, page, _ in cited}}
    dangling = [
        f"{name}: {page}, {heading}"
        for name, page, heading in cited
        if not re.search(rf"(?m)^#+ {re.escape(heading)}$", headings[page])
    ]
    here = Path(__file__).name
    dangling += [str(path) for path, text in texts.items() if "FORMATS §" in text and path.name != here]
    assert dangling == []


# Retired words → files that may still have one: whole words of code, docstrings and comments. Forty with RETIRED_PROSE.
RETIRED: dict[str, tuple[str, ...]] = {
    # identifiers
    "CachedContext": (),
    "OWN_KINDS": (),
    "PlainContext": (),
    "Step": (),
    "Veil": (),
    "veil": (),
    "go_on": ("dialogue.py", "generate/reuse.py"),
    "hear": (
        "cli/ask.py",
        "cli/chat_room.py",
        "cli/quantize_printer.py",
        "cli/screen.py",
        "cli/source.py",
        "dialogue.py",  # the old keyword
        "files/download.py",
        "responses/streamer.py",
    ),
    "q_offsets": ("ops/cpu/attention.py", "ops/cpu/decoder.py"),  # fields of the library's structs
    "rooms": ("model/packing.py",),
    "typed_controls": ("_moved.py",),
    # prose
    "Picture": (),
    "Pictures": (),
    "picture": ("reader/answers.py",),  # questions that the embedded model was trained on
    "pictures": (
        "_moved.py",
        "cli/bench.py",
        "prompts/conversation_file.py",
        "reader/answers.py",
    ),  # old names, and its answer
    "amiss": ("adapters/files.py",),
    "crew": ("_moved.py",),
    "hears": ("cli/images.py", "files/download.py", "responses/tool_call_json.py"),
    "house": (),
}
# Reported speech and persons, retired from docstrings and comments of the packages below.
RETIRED_PROSE = ("told", "tells", "knows", "asks", "whoever", "somebody", "nobody")


def test_retired_words_do_not_return() -> None:
    assert len(RETIRED) + len(RETIRED_PROSE) <= 40
    found = [
        f"{name}: {word}"
        for word, allowed in RETIRED.items()
        for name in FILES
        if name not in allowed and re.search(rf"\b{word}\b", source(name))
    ]
    found += [
        f"{name}: {word}"
        for name in FILES
        for word in re.findall(rf"\b({'|'.join(RETIRED_PROSE)})\b", prose(name))
    ]
    assert found == [], "use the field's word (ARCHITECTURE.md, Glossary)"


def prose(name: str) -> str:
    """Docstrings and comments of a file."""
    tokens = tokenize.generate_tokens(io.StringIO(source(name)).readline)
    return "\n".join(
        (*docstrings(name), *(token.string for token in tokens if token.type == tokenize.COMMENT))
    )
