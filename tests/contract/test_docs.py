"""Every example in README, docs/ and examples/ is executed, and what the pages promise is counted."""

from __future__ import annotations

import doctest
import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests import tiny
from vitrail import errors
from vitrail.cli.ask import ask
from vitrail.cli.chat import chat
from vitrail.cli.info import info
from vitrail.cli.main import main
from vitrail.cli.prompt import prompt
from vitrail.cli.quantize import quantize
from vitrail.cli.tokens import tokens
from vitrail.cli.train import train

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
)
EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py"))

# Commands that install, test or train: other tests and .ci/run do that.
NOT_RUN = (
    "pip install '.[test]' && pytest",
    'eval "$(_VITRAIL_COMPLETE=bash_source vitrail)"',  # tests/cli/test_completion.py does
    "pip install -e '.[test]'",
    "pip install -e '.[dev]'",
    "scripts/",
    ".ci/run",
    "python -m vitrail.reader",
    "python examples/",
)
# What an example is given here so that it takes seconds.
SHORTENED = {"examples/finetune.py": ["--images", "6", "--steps", "2", "--tests", "1"]}
# What an example names and a test has not got: a published checkpoint and images of the web.
STAND_INS = {
    "mistral-community/pixtral-12b": "checkpoint",
    "https://picsum.photos/id/237/200/300": "image",
    "https://picsum.photos/seed/picsum/200/300": "image",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(page, text[: found.start()].count("\n") + 2, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    ]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the examples' images and files where the pages expect them."""
    (tmp_path / "examples").mkdir()
    for file in (
        file for kind in ("png", "json", "jsonl", "txt") for file in (ROOT / "examples").glob(f"*.{kind}")
    ):
        shutil.copy(file, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stand_ins(tiny_llava: Path, tmp_path: Path) -> dict[str, str]:
    """STAND_INS with the files that stand in."""
    path = tmp_path / "stand-in.png"
    tiny.image(80, 60).save(path)
    files = {"checkpoint": str(tiny_llava), "image": str(path)}
    return {name: files[kind] for name, kind in STAND_INS.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))]
)
def test_python_of_a_page_runs(page: str, desk: Path, stand_ins: dict[str, str]) -> None:
    """The blocks of a page run from top to bottom in one namespace; what they show is what comes out."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language != "python":
            continue
        code = block.code
        for name, path in stand_ins.items():
            code = code.replace(name, path)
        with redirect_stdout(io.StringIO()):
            if ">>>" in code:
                _compare(code, names, block)
            else:
                exec(compile("\n" * (block.line - 1) + code, block.page, "exec"), names)


def _compare(code: str, names: dict[str, Any], block: Block) -> None:
    """Run an interactive session and compare what it prints."""
    session = doctest.DocTestParser().get_doctest(code, names, block.page, block.page, block.line - 1)
    session.globs = names  # the parser gave the session a copy; later blocks need what it binds
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed, tried = runner.run(session, out=report.write, clear_globs=False)
    assert tried
    assert not failed, report.getvalue()


def _lines() -> Iterator[Any]:
    """Every command line of the pages, continued ones in one piece."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.code.replace("\\\n", " ").splitlines():
                    if line.strip() and not line.startswith("#"):
                        yield pytest.param(line.strip(), id=f"{block.page}:{block.line}")


COMMANDS = [line for line in _lines() if not line.values[0].startswith(NOT_RUN)]
TRAINING = [line for line in _lines() if line.values[0].startswith("python -m ")]


@pytest.mark.parametrize("command", TRAINING)
def test_commands_that_train_are_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They take hours, so only their options are compared with what the program's --help names."""
    _, _, module, *rest = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert [word for word in rest if word.startswith("--") and word not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_pages_run(
    command: str,
    desk: Path,
    stand_ins: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each `vitrail …` of a page succeeds and prints something; the installation before it is .ci/run's."""
    words = [stand_ins.get(word, word) for word in shlex.split(command.removeprefix("pip install . && "))]
    assert words.pop(0) == "vitrail", command
    if "<" in words:
        at = words.index("<")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(words[at + 1]).read_bytes())))
        del words[at : at + 2]
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(
    example: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every program in examples/ runs, those that take minutes with less to do, and prints something."""
    monkeypatch.setattr(sys, "argv", [example, *SHORTENED.get(example, ())])
    runpy.run_path(str(ROOT / example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_two_commands_stand_first_in_the_readme() -> None:
    """Word for word."""
    commands = [block.code.strip() for block in blocks("README.md") if block.language == "bash"]
    assert commands[:2] == [
        'pip install . && vitrail ask examples/sign.png "What does it say?"',
        "pip install '.[test]' && pytest",
    ]
    assert blocks("README.md")[0].language == "bash"


def test_every_public_name_is_documented() -> None:
    """docs/api.md mentions each name that `vitrail` exports."""
    page = (ROOT / "docs/api.md").read_text("utf-8")
    missing = [name for name in vitrail.__all__ if not re.search(rf"\b{name}\b", page)]
    assert missing == ["__version__"]


def test_every_error_is_documented() -> None:
    """docs/errors.md has a row for each class of the tree."""
    page = (ROOT / "docs/errors.md").read_text("utf-8")
    kinds = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert [name for name in kinds if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize(
    "command", [ask, chat, info, prompt, tokens], ids=["ask", "chat", "info", "prompt", "tokens"]
)
def test_every_option_is_documented(command: Any) -> None:
    """docs/cli.md names each option."""
    page = (ROOT / "docs/cli.md").read_text("utf-8")
    options = [flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")]
    assert options
    assert [flag for flag in options if f"`{flag}" not in page] == []


def test_every_option_of_training_is_documented() -> None:
    """docs/training.md names each option of `vitrail train`."""
    page = (ROOT / "docs/training.md").read_text("utf-8")
    options = [flag for parameter in train.params for flag in parameter.opts if flag.startswith("--")]
    assert len(options) > 30
    assert [flag for flag in options if f"`{flag}" not in page] == []


def test_every_option_of_quantising_is_documented() -> None:
    """docs/quantize.md names each option of `vitrail quantize`."""
    page = (ROOT / "docs/quantize.md").read_text("utf-8")
    options = [flag for parameter in quantize.params for flag in parameter.opts if flag.startswith("--")]
    assert len(options) == 10
    assert [flag for flag in options if f"`{flag}" not in page] == []


def _links() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
            yield page, target


@pytest.mark.parametrize(("page", "target"), sorted(set(_links())))
def test_links_between_pages_lead_somewhere(page: str, target: str) -> None:
    """A link without a scheme is a file beside the page."""
    assert ((ROOT / page).parent / target).exists()
