"""files/lfs.py: a Git LFS pointer in place of any file is named as one, with what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrail import AutoModelForImageTextToText, AutoProcessor, VitrailError
from vitrail.files.safetensors import SafetensorsFile
from vitrail.files.token_ids import read_token_ids
from vitrail.images.load import load_image
from vitrail.images.pdf import load_pages
from vitrail.prompts.conversation_file import read_conversations
from vitrail.tokenizer.mistral import MistralCommonTokenizer
from vitrail.train.data_files import find_lines, open_records
from vitrail.weights.convert import convert

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1364664\n"
READERS: dict[str, Callable[[Path], Any]] = {
    "model.safetensors": SafetensorsFile,
    "tekken.json": MistralCommonTokenizer,
    "tokenizer.model.v3": MistralCommonTokenizer,
    "tokenizer.model": read_token_ids,
    "sign.png": load_image,
    "page.pdf": load_pages,
    "talk.json": lambda file: read_conversations(file.read_bytes(), str(file)),
    "talks.jsonl": lambda file: list(find_lines(file)),
}


@pytest.mark.parametrize("name", READERS)
def test_pointer_read_as_a_file_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(POINTER)
    with pytest.raises(VitrailError, match=rf"{name}.*Git LFS pointer.*git lfs pull"):
        READERS[name](file)


def test_pointer_bytes_as_an_image_are_named() -> None:
    with pytest.raises(VitrailError, match="These bytes: a Git LFS pointer"):
        load_image(POINTER)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", AutoModelForImageTextToText),
        ("model.safetensors", AutoModelForImageTextToText),
        ("generation_config.json", AutoModelForImageTextToText),
        ("tokenizer.json", AutoProcessor),
        ("tokenizer_config.json", AutoProcessor),
        ("preprocessor_config.json", AutoProcessor),
        ("chat_template.jinja", AutoProcessor),
    ],
)
def test_pointer_in_a_checkpoint_is_named(tiny_mistral3: Path, tmp_path: Path, name: str, kind: Any) -> None:
    folder = Path(shutil.copytree(tiny_mistral3, tmp_path / "copy"))
    (folder / name).write_bytes(POINTER)
    with pytest.raises(VitrailError, match=rf"{name}.*Git LFS pointer"):
        kind.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_pointer_beside_weights_is_not_copied(tiny_llava: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_llava, tmp_path / "copy"))
    (folder / name).write_bytes(POINTER)
    with pytest.raises(VitrailError, match=rf"{name}: a Git LFS pointer"):
        convert(folder, tmp_path / "out", "mistral")
    assert not (tmp_path / "out").exists()


def test_pointer_as_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "talks.parquet").write_bytes(POINTER)
    with pytest.raises(VitrailError, match=r"talks\.parquet: a Git LFS pointer"):
        open_records(tmp_path / "talks.parquet")
