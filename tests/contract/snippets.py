"""The code blocks of the documents: found, patched by the list of errata, run. Nothing is compared here."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.contract.errata import ERRATA, Erratum

SEEDS = Path(__file__).parent / "seeds"
DOCUMENTS = ("pixtral", "mistral3", "pixtral_large")
PROMPT, CONTINUATION = ">>> ", "... "


@dataclass(frozen=True)
class Snippet:
    """One code block: `name` is document and number, `source` the text as the document has it."""

    name: str
    source: str


@dataclass
class Run:
    """What a run left behind: every name it set, what its last line showed, what it printed."""

    names: dict[str, Any]
    shown: Any = None
    printed: str = ""
    source: str = field(default="", repr=False)


def document(name: str) -> str:
    """The text of one of the documents."""
    return (SEEDS / f"{name}.txt").read_text("utf-8")


def extract(name: str) -> list[Snippet]:
    """All code blocks of a document, in order: fenced as Python, or consecutive lines behind `>>> ` and `... `.

    Within brackets Python does not care for indentation, so blocks whose indentation was lost still parse.
    """
    blocks: list[list[str]] = []
    fenced = prompted = False
    for line in document(name).splitlines():
        if fenced:
            if line.startswith("```"):
                fenced = False
            else:
                blocks[-1].append(line)
        elif line in ("```python", "```py"):
            fenced, prompted = True, False
            blocks.append([])
        elif line.startswith((PROMPT, CONTINUATION)):
            if not prompted:
                blocks.append([])
            blocks[-1].append(line[len(PROMPT) :])
            prompted = True
        else:
            prompted = False
    return [Snippet(f"{name}-{i}", "\n".join(lines) + "\n") for i, lines in enumerate(blocks, 1)]


def find(name: str) -> Snippet:
    """The block of this name."""
    (found,) = [snippet for snippet in extract(name.rpartition("-")[0]) if snippet.name == name]
    return found


def errata_of(snippet: Snippet) -> list[Erratum]:
    """The errata that apply to a block, in order."""
    return [erratum for erratum in ERRATA if snippet.name in erratum.where]


def patched(snippet: Snippet, library: str, values: Mapping[str, Any], skip: tuple[str, ...] = ()) -> str:
    """The block as it is run: errata applied (but those of the kinds in `skip`), the import line changed.

    `values` fills the places {name} of replacements. An erratum whose text is not there raises ValueError.
    """
    source = snippet.source
    for erratum in errata_of(snippet):
        if erratum.kind in skip:
            continue
        if erratum.old not in source:
            raise ValueError(f"{snippet.name} does not hold {erratum.old!r}; correct the list of errata.")
        source = source.replace(erratum.old, erratum.new.format_map(_Literals(values)))
    return source.replace("from transformers import", f"from {library} import")


class _Literals(dict[str, Any]):
    """{name} becomes the value as a Python literal."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({name: repr(str(value)) for name, value in values.items()})


def run(source: str) -> Run:
    """Run a block in a namespace of its own; the value of a last line that is an expression is kept."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    names: dict[str, Any] = {"__name__": "snippet"}
    printed = io.StringIO()
    shown = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "snippet", "exec"), names)
        if last is not None:
            assert isinstance(last, ast.Expr)
            shown = eval(compile(ast.Expression(last.value), "snippet", "eval"), names)
    return Run({k: v for k, v in names.items() if not k.startswith("__")}, shown, printed.getvalue(), source)
