"""Names of the hub on the command line: what is told, where, and with which exit status."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.hub_server import HubServer
from vitrail.cli.main import main

NAME = "owner/tiny"


@pytest.fixture
def sign(tmp_path: Path) -> str:
    path = tmp_path / "sign.png"
    tiny.image(60, 90).save(path)
    return str(path)


def test_ask_tells_the_size_first(
    hub: HubServer, tiny_llava: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, tiny_llava)
    words = ["ask", sign, "What?", "--max-new-tokens", "2", "--model"]
    assert main([*words, str(tiny_llava)]) == 0
    wanted = capsys.readouterr().out
    assert main([*words, NAME, "--revision", "main", "--format", "hf"]) == 0
    out, err = capsys.readouterr()
    assert out == wanted
    told = r"vitrail: fetching owner/tiny in Hugging Face's format: [\d.]+ [kM]B in 1 file; "
    pattern = told + r"[\d.,]+ GB are free in .*cache\n"
    assert re.fullmatch(pattern, err)
    assert hub.sent()[-1] == "model.safetensors"
    assert main([*words, NAME]) == 0
    assert capsys.readouterr() == (wanted, "")


def test_tokens_fetches_no_weights(
    hub: HubServer, tiny_llava: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, tiny_llava)
    assert main(["tokens", sign, "--model", NAME]) == 0
    assert capsys.readouterr().err == ""
    assert "model.safetensors" not in hub.sent()


def test_convert_fetches_the_format_to_convert_from(
    hub: HubServer, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, tiny_llava)
    assert main(["convert", NAME, str(tmp_path / "own"), "--to", "mistral", "--revision", "main"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'own'}: consolidated.safetensors")
    assert main(["convert", NAME, str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert "owner/tiny has no params.json" in capsys.readouterr().err


def test_a_bar_on_a_terminal(
    hub: HubServer,
    tiny_llava: Path,
    sign: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add(NAME, tiny_llava)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["tokens", sign, "--model", NAME]) == 0
    err = capsys.readouterr().err
    assert NAME in err
    assert re.search(r"\d+(\.\d+)?/\d+(\.\d+)? [kM]?B", err)


def test_an_interrupted_download_is_continued(
    hub: HubServer, tiny_llava: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, tiny_llava)
    hub.cut["model.safetensors"] = 5000
    words = ["ask", sign, "What?", "--max-new-tokens", "2", "--model", NAME]
    assert main(words) == 2
    assert "run this again: 4.1 kB of" in capsys.readouterr().err.splitlines()[-1]
    assert main(words) == 0
    assert "4.1 kB of it are here" in capsys.readouterr().err
    assert hub.ranges("model.safetensors") == [None, "bytes=4096-"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "owner/none"], "no model of that name on the hub"),
        (["--model", "owner/gated"], "is gated: accept its licence at "),
        (["--model", NAME, "--revision", "v9"], "owner/tiny has no revision 'v9' on the hub"),
        (["--model", NAME, "--format", "mistral"], "owner/tiny has no params.json"),
        (["--model", NAME, "--format", "gguf"], "'gguf' is not one of 'hf', 'mistral'"),
        (["--model", "owner/bin"], "pickled weights only"),
        (["--model", ".", "--revision", "main"], "--revision is for names on the hub"),
    ],
)
def test_mistakes(
    hub: HubServer,
    tiny_llava: Path,
    sign: str,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = {path.name: path.read_bytes() for path in tiny_llava.iterdir() if path.suffix != ".safetensors"}
    hub.add(NAME, small)
    hub.add("owner/gated", small, gated=True)
    hub.add("owner/bin", {**small, "pytorch_model.bin": b"\x80"})
    assert main(["ask", sign, "What?", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
