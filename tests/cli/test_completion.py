"""Shell completion by click's convention, and commands that were given nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from vitrail.cli.main import app, main


@pytest.fixture
def completed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """completed(words…) → what bash is given for the last word."""

    def run(*words: str) -> list[str]:
        monkeypatch.setenv("_VITRAIL_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(["vitrail", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert main([]) == 0
        return capsys.readouterr().out.split()

    return run


def test_completion_first_word_gives_the_commands(completed) -> None:
    assert completed("") == [f"plain,{name}" for name in sorted(app.commands)]
    assert completed("qu") == ["plain,quantize"]


def test_completion_option_gives_options_and_choices(completed) -> None:
    assert completed("ask", "--mo") == ["plain,--model"]
    assert completed("bench", "decode", "--format", "q") == ["plain,q4", "plain,q8"]


@pytest.mark.parametrize(
    "words",
    [("prompt", "a", "--tokenizer", "si"), ("read", "a", "--model", "si"), ("train", "a", "--out", "si"),
     ("train", "a", "--model", "si"), ("quantize", "si"), ("convert", "a", "si"), ("bench", "load", "--folder", "si"),
     ("ask", "--conversation", "si"), ("prompt", "a", "--tools", "si"), ("ask", ""),
     ("ask", "--model", "si"), ("chat", "si"), ("read", "si"), ("tokens", "a.png", "si"), ("prompt", "si"),
     ("train", "si"), ("train", "a", "--eval", "si"), ("convert", "si"), ("quantize", "a", "si"), ("info", "si"),
     ("ask", "--adapter", "si"), ("ask", "--tools", "si"), ("chat", "--load", "si")],
)  # fmt: skip
def test_completion_argument_that_names_files_asks_the_shell_for_files(completed, words) -> None:
    assert f"file,{words[-1]}" in completed(*words)


def test_completion_info_gives_published_geometries_too(completed) -> None:
    assert completed("info", "pixtral") == ["file,pixtral", "plain,pixtral-12b", "plain,pixtral-large"]


def test_completion_unknown_shell_is_refused(capsys, monkeypatch) -> None:
    monkeypatch.setenv("_VITRAIL_COMPLETE", "tcsh_source")
    assert main([]) == 2
    assert "bash_source, zsh_source or fish_source, got 'tcsh_source'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_script_of_other_shells_names_the_program(capsys, monkeypatch, shell: str) -> None:
    monkeypatch.setenv("_VITRAIL_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert f"_VITRAIL_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_completion_script_in_bash_completes(tmp_path) -> None:
    program = tmp_path / "vitrail"
    program.write_text(f"#!{sys.executable}\nfrom vitrail.cli import run\nrun()\n")
    program.chmod(0o755)
    script = (
        'eval "$(_VITRAIL_COMPLETE=bash_source vitrail)"; COMP_WORDS=(vitrail to); COMP_CWORD=1; '
        '_vitrail_completion vitrail; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.split() == ["tokens"], done.stderr


@pytest.mark.parametrize("words", [[], ["bench"]])
def test_group_without_a_command_shows_its_help(capsys, words: list[str]) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "Commands:" in out
    assert err == ""


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("prompt", "a", "--format", "v7"), ["plain,v7", "plain,v7m1", "plain,v7-tekken"]),
        (("prompt", "a", "--diff", "ca"), ["plain,card"]),
        (("train", "a", "--format", "te"), ["plain,template"]),
        (("ask", "--device", "c"), ["plain,cpu", "plain,cuda"]),
        (("train", "a", "--device", "a"), ["plain,auto"]),
    ],
)
def test_completion_option_of_names_gives_them(completed, words, given) -> None:
    assert completed(*words) == given
