"""`vitrail info --system` and VITRAIL_KERNELS: which kernels run, why not others, and what a wrong value is told."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from vitrail.cli.main import main
from vitrail.ops import memory
from vitrail.ops.cpu import library

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The choice is made once per process: here, once per test."""
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    before = library._kernels()
    current = None if before.library is None else before.library.vt_isa_current()
    library._kernels.cache_clear()
    yield
    library._kernels.cache_clear()
    if before.library is not None:
        before.library.vt_isa_use(current)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["info", "--system", "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["info", "--system"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys)
    assert set(found) == {
        "vitrail", "python", "torch", "platform", "cpu", "cores", "usable_cores", "memory", "pages", "threads", "kernels"
    }  # fmt: skip
    assert found["vitrail"] == vitrail.__version__ and found["torch"] == torch.__version__
    assert 1 <= found["usable_cores"] <= found["cores"] == os.cpu_count()
    assert 0 < found["memory"]["free"] < found["memory"]["total"]
    assert found["threads"] == torch.get_num_threads()
    text = shown(capsys)
    assert found["cpu"] in text and torch.__version__ in text


def test_the_pages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys)["pages"]
    assert found == {
        "size": memory.pages().size,
        "large": memory.pages().large,
        "reason": memory.pages().reason,
    }
    assert found["reason"] in shown(capsys)
    if found["large"] and found["size"] == 2**21:
        assert "pages 2 MiB where weights lie (transparent_hugepage: " in shown(capsys)
    monkeypatch.setenv(memory.ENVIRONMENT, "small")
    assert told(capsys)["pages"] == {"size": mmap.PAGESIZE, "large": False, "reason": "VITRAIL_PAGES=small"}
    assert f"pages {mmap.PAGESIZE // 1024} KiB (VITRAIL_PAGES=small)" in shown(capsys)
    monkeypatch.setenv(memory.ENVIRONMENT, "big")
    assert main(["info", "--system"]) == 2
    assert capsys.readouterr().err == "vitrail: VITRAIL_PAGES must be large or small, but is 'big'.\n"


def test_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    kernels = told(capsys)["kernels"]
    if kernels["used"] is None:
        pytest.skip(f"no kernels here: {kernels['reason']}")
    assert kernels["used"] == library.available()[-1] and kernels["reason"] == "" and kernels["compiler"]
    assert {kernels["used"], *kernels["others"]} == set(library.ISAS)
    usable = {isa for isa, reason in kernels["others"].items() if not reason}
    assert usable | {kernels["used"]} == set(library.available())
    text = shown(capsys)
    assert f"kernels {kernels['used']} built by {kernels['compiler']}" in text
    for isa, reason in kernels["others"].items():
        assert f"{isa}: {reason or f'there too (VITRAIL_KERNELS={isa})'}" in text


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx", "neon"])
def test_each_can_be_forced_or_says_why_not(
    isa: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    available = library.available()
    why_not = library._kernels().why_not(isa)
    library._kernels.cache_clear()
    monkeypatch.setenv(library.ENVIRONMENT, isa.upper())
    if isa in available:
        assert told(capsys)["kernels"]["used"] == isa
        return
    for words in (["info", "--system"], ["ask", str(ROOT / "examples" / "sign.png"), "What does it say?"]):
        library._kernels.cache_clear()
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and isa in error and why_not in error


def test_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(library.ENVIRONMENT, "off")
    kernels = told(capsys)["kernels"]
    assert kernels["used"] is None and kernels["reason"] == "VITRAIL_KERNELS=off" and kernels["others"] == {}
    assert "kernels none, PyTorch does the work: VITRAIL_KERNELS=off" in shown(capsys)
    assert library.library() is None and library.available() == ()


@pytest.mark.parametrize("command", ["info", "ask"])
def test_an_unknown_value_is_told_in_a_sentence(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(library.ENVIRONMENT, "sse9")
    words = {"info": ["--system"], "ask": [str(ROOT / "examples" / "sign.png"), "What does it say?"]}
    assert main([command, *words[command]]) == 2
    assert capsys.readouterr().err == (
        "vitrail: VITRAIL_KERNELS must be one of off, portable, neon, avx2, avx512, amx, but is 'sse9'.\n"
    )


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        (
            '{"error": "no C++ compiler (c++, g++ or clang++) was found when Vitrail was installed"}',
            "no C++ compiler",
        ),
        (None, "was never built"),
        ("[1]", "no library was built"),
        ("{broken", "was never built"),
    ],
)
def test_without_a_library_the_note_of_the_build_tells_why(
    note: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if note is not None:
        (tmp_path / "build.json").write_text(note, encoding="utf-8")
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    kernels = told(capsys)["kernels"]
    assert kernels["used"] is None and reason in kernels["reason"]
    library._kernels.cache_clear()
    monkeypatch.setenv(library.ENVIRONMENT, "portable")
    assert main(["info", "--system"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and reason in error


def test_a_library_of_other_sources_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not library.available():
        pytest.skip("no kernels here")
    library._kernels.cache_clear()
    built = library._ABI
    monkeypatch.setattr(library, "_ABI", 99)
    assert f"built for version {built} of the interface, expected 99" in told(capsys)["kernels"]["reason"]
    library._kernels.cache_clear()
    name = next(name for name in library._LIBRARIES if (library._FOLDER / name).exists())
    (tmp_path / name).write_bytes(b"no library at all")
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert f"{name} could not be loaded" in told(capsys)["kernels"]["reason"]
    shutil.rmtree(tmp_path)


def test_a_model_and_the_system_are_not_asked_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "folder", "--system"]) == 2
    assert "leave out MODEL" in capsys.readouterr().err
