"""The recipes of the recordings give what is recorded, where the libraries are the ones of then (make.py)."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import make
from tests.tiny import DATA


def recipe(part: str) -> Any:
    """A module of recipes/; skips where another version would give other numbers."""
    module = importlib.import_module(f"tests.golden.recipes.{part}")
    library, recorded = next(iter(module.LIBRARIES.items()))
    here = importlib.metadata.version(library)
    if part != "transformers" and here != recorded:
        pytest.skip(f"recorded with {library} {recorded}, here is {here}: pip install {library}=={recorded}")
    return module


def check(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    found = {
        str(file.relative_to(folder)): make.compare(file, DATA / file.relative_to(folder)) for file in files
    }
    assert [f"{name}: {said}" for name, (same, said) in found.items() if not same] == []


def test_prompts_sentencepiece_give_the_same_bytes(tmp_path: Path) -> None:
    recipe("prompts").make(tmp_path, ["v1", "v2", "v3", "v7", "v7m1"])
    check(tmp_path)


@pytest.mark.slow
def test_prompts_tekken_give_the_same_bytes(tmp_path: Path) -> None:
    """Some of the files; `python -m tests.golden.make prompts` compares all of them."""
    recipe("prompts").make(tmp_path, ["v15", "truncated", "fim"])
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("part", ["bitsandbytes", "peft", "transformers"])
def test_tensors_give_the_same_values(part: str, tmp_path: Path) -> None:
    recipe(part).make(tmp_path)
    check(tmp_path)


def test_compare_of_another_value_or_shape_says_so(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1.0, 2.0])}, tmp_path / "one.safetensors")
    for other, found in (([1.0, 2.00001], True), ([1.0, 2.1], False), ([1.0], False)):
        save_file({"a": torch.tensor(other)}, tmp_path / "two.safetensors")
        assert make.compare(tmp_path / "one.safetensors", tmp_path / "two.safetensors")[0] is found
