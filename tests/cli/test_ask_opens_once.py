"""One `vitrail ask` opens its checkpoint once: one listing of the folder, one reading of each file."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests import geometries, tiny
from vitrail.cli.main import main
from vitrail.reader import embedded_path

_WATCHED: list[
    tuple[Path, Counter[str]]
] = []  # the folder under test, while one is; a hook cannot be removed


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED or event not in ("open", "os.scandir", "os.listdir"):
        return
    folder, counts = _WATCHED[-1]
    path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    place = Path(os.fsdecode(path)).absolute()
    if event == "open" and place.parent == folder:
        counts[place.name] += 1
    elif event != "open" and place == folder:
        counts["the folder"] += 1


sys.addaudithook(_note)


@contextmanager
def openings(folder: Path) -> Iterator[Counter[str]]:
    """Counts, within the block, how often each file of a folder is opened and how often the folder is listed."""
    counts: Counter[str] = Counter()
    _WATCHED.append((folder.absolute(), counts))
    try:
        yield counts
    finally:
        _WATCHED.pop()


@pytest.fixture(scope="module")
def mistral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in Mistral's own format beside a published tekken.json."""
    found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        pytest.skip("takes its tekken.json from the wheel of mistral-common")
    params = geometries.small("Pixtral 12B") | {"vocab_size": 131072, "dim": 16, "n_layers": 1}
    folder = tmp_path_factory.mktemp("mistral")
    model = geometries.model_of(params)
    geometries.write_native(folder, params, geometries.native_tensors(model, params))
    shutil.copy(Path(found.origin).parent / "data" / "tekken_240911.json", folder / "tekken.json")
    return folder


@pytest.mark.parametrize("kind", ["embedded", "hf", "mistral"])
def test_ask_any_folder_reads_every_file_once(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixtures = {"hf": "tiny_mistral3", "mistral": "mistral_folder"}
    folder = request.getfixturevalue(fixtures[kind]) if kind in fixtures else embedded_path()
    tiny.image(40, 60).save(tmp_path / "sign.png")
    words = ["ask", str(tmp_path / "sign.png"), "What does it say?", "--max-new-tokens", "2", "--json"]
    with openings(folder) as counts:
        assert main([*words, *([] if kind == "embedded" else ["--model", str(folder)])]) == 0
    assert "text" in json.loads(capsys.readouterr().out)
    config, tokenizer = (
        ("params.json", "tekken.json") if kind == "mistral" else ("config.json", "tokenizer.json")
    )
    assert {config, tokenizer, "the folder"} <= counts.keys()
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_pipeline_opens_its_folder_once(tiny_mistral3: Path) -> None:
    with openings(tiny_mistral3) as counts:
        vitrail.pipeline("image-text-to-text", model=str(tiny_mistral3))
    assert {"config.json", "tokenizer.json", "the folder"} <= counts.keys()
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_read_opens_the_embedded_folder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.image(40, 60).save(tmp_path / "sign.png")
    with openings(embedded_path()) as counts:
        assert main(["read", str(tmp_path / "sign.png")]) == 0
    assert capsys.readouterr().out
    assert {"config.json", "tokenizer.json", "the folder"} <= counts.keys()
    assert {name: count for name, count in counts.items() if count != 1} == {}
