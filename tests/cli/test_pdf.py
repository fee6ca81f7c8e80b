"""PDFs on the command line: pages where images may stand, limits as options, mistakes in one line."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path

import pytest

from tests import pdfs
from tests.pdfs import BLUE, RED
from vitrail.cli.main import main

TWO = pdfs.pdf((72, 36, RED), (36, 72, BLUE))


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A PDF of two pages under a name that does not say so."""
    path = tmp_path / "scan.bin"
    path.write_bytes(TWO)
    return str(path)


def test_each_page_is_an_image(tiny_llava: Path, two: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`vitrail tokens` has a line for each page, and `vitrail ask` reads them in order."""
    assert main(["tokens", two, "--model", str(tiny_llava)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "150×75" in first and "75×150" in second
    costs = [int(line.split()[0]) for line in (first, second)]
    assert main(["ask", two, "Read.", "--json", "--model", str(tiny_llava), "--max-new-tokens", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["images"] == costs


class _Pipe:
    def __init__(self, data: bytes) -> None:
        self.buffer = BytesIO(data)

    def isatty(self) -> bool:
        return False


def test_limits_are_options_and_mistakes_are_told(
    tiny_llava: Path, two: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and one line: too many pages, an encrypted file on standard input."""
    words = ["ask", two, "Read.", "--model", str(tiny_llava), "--pdf-pages", "1"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "scan.bin' has 2 pages; at most 1 are read" in err and err.count("\n") == 1
    monkeypatch.setattr(sys, "stdin", _Pipe(pdfs.pdf((9, 9, RED), encrypted=True)))
    assert main(["ask", "-", "Read.", "--model", str(tiny_llava)]) == 2
    err = capsys.readouterr().err
    assert "encrypted" in err and err.count("\n") == 1
