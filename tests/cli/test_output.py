"""What the command line prints, and where: texts that would steer a terminal, streams that are full, closed or narrow."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from vitrail.cli.console import PlainConsole
from vitrail.cli.main import main
from vitrail.cli.output import echo, echo_json, one_line, printable

STEERING = "\x1b]0;mine\x07\x1b[31mred\x9b31m\x08\r\x7f\u202e\u2066"


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """A good image."""
    tiny.image(48, 64).save(tmp_path / "sign.png")
    return tmp_path / "sign.png"


def vitrail(*words: object, closed: int | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    def close() -> None:
        if closed is not None:
            os.close(closed)

    arguments = [sys.executable, "-m", "vitrail", *map(str, words)]
    return subprocess.run(arguments, text=True, preexec_fn=close, check=False, **options)


def test_printable_steering_characters_are_left_out() -> None:
    assert printable(STEERING) == "]0;mine[31mred31m"


def test_printable_text_of_every_script_stays() -> None:
    text = "a\tb\nné\u00a0×\u3000日本\u202f10\U0001f468\u200d\U0001f469 עב"
    assert printable(text) == text


def test_one_line_breaks_and_steering_become_spaces() -> None:
    assert one_line("a\nb\t\x1b[31mc\u2028d\r\n\x9b") == "a b [31mc d"


def test_echo_terminal_gets_no_steering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    echo(f"{STEERING}é\n日")
    assert shown.getvalue() == "]0;mine[31mred31mé\n日\n"


def test_echo_json_steering_is_escaped_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({"a": STEERING + "é日\u2028\ud800"}, indent=2)
    out = capsys.readouterr().out
    assert printable(out) == out
    assert json.loads(out) == {"a": STEERING + "é日\u2028\ud800"}
    assert "é日" in out


def test_echo_json_narrow_encoding_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252", errors="replace"))
    echo_json({"a": "é日"})
    assert json.loads(raw.getvalue()) == {"a": "é日"}


def test_console_text_is_cleaned_and_styles_stay() -> None:
    file = io.StringIO()
    PlainConsole(file=file, force_terminal=True, color_system="standard").print(f"[b]{STEERING}", style="red")
    assert file.getvalue() == "\x1b[31m[b]]0;mine[31mred31m\x1b[0m\n"


def test_echo_full_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    echo("a warning", err=True)
    monkeypatch.setattr(sys, "stderr", None)
    echo("a warning", err=True)


def test_main_full_stdout_is_one_line(
    sign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["tokens", str(sign)]) == 2
    assert capsys.readouterr().err == "vitrail: the output cannot be written: No space left on device.\n"


@pytest.mark.skipif(os.name == "nt", reason="file descriptors of POSIX")
def test_closed_stdout_is_one_line(sign: Path) -> None:
    run = vitrail("tokens", sign, closed=1, stderr=subprocess.PIPE)
    assert run.returncode == 2
    assert run.stderr == "vitrail: standard output is closed; give it a file, a pipe or /dev/null.\n"


@pytest.mark.skipif(os.name == "nt", reason="file descriptors of POSIX")
def test_closed_stderr_loses_no_answer(sign: Path) -> None:
    whole = vitrail("tokens", sign, stdout=subprocess.PIPE)
    run = vitrail("tokens", sign, stdout=subprocess.PIPE, closed=2)
    assert (run.returncode, run.stdout) == (0, whole.stdout)
    assert str(sign) in run.stdout
    assert vitrail("tokens", "absent.png", stdout=subprocess.PIPE, closed=2).returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_output_is_one_line(sign: Path) -> None:
    for words in (["tokens", sign], ["--help"], ["info"]):
        with open("/dev/full", "w") as full:
            run = vitrail(*words, stdout=full, stderr=subprocess.PIPE)
        assert run.returncode == 2
        assert run.stderr == "vitrail: the output cannot be written: No space left on device.\n"


def test_cp1252_pipe_keeps_its_letters(sign: Path) -> None:
    accented = sign.rename(sign.with_name("é日.png"))
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    arguments = [sys.executable, "-m", "vitrail", "tokens", str(accented)]
    run = subprocess.run(arguments, capture_output=True, env=environment, check=False)
    assert run.returncode == 0
    assert run.stdout.decode("cp1252").rstrip().endswith("é?.png")
