"""`vitrail tokens`: the costs that it tells are the ids that the checkpoint's own settings give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests import tiny
from vitrail.cli.main import main


@pytest.mark.parametrize(
    "settings",
    [{"size": {"height": 40, "width": 24}}, {"size": {"longest_edge": 33}}, {"dialect": "mistral"}],
    ids=["height and width", "longest edge", "dialect"],
)
def test_costs_are_those_of_the_processor(
    settings: dict[str, Any], tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_llava, tmp_path / "model")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")
    image = tmp_path / "image.png"
    tiny.image(57, 61).save(image)
    assert main(["tokens", str(image), "--model", str(folder)]) == 0
    processor = vitrail.AutoProcessor.from_pretrained(folder)
    ids = processor(text="[IMG]", images=str(image))["input_ids"][0]
    cost = sum(int((ids == index).sum()) for index in processor.image_ids)
    assert int(capsys.readouterr().out.split()[0]) == cost == processor.num_image_tokens(57, 61)


def test_tokens_json_is_one_object_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b\n.png"):
        tiny.image(32, 64).save(tmp_path / name)
    names = [str(tmp_path / "a.png"), str(tmp_path / "b\n.png")]
    assert main(["tokens", *names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["tokens", *names, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["file"] for one in found] == names
    assert [(one["page"], one["size"]) for one in found] == [(1, [64, 32])] * 2
    assert [one["tokens"] for one in found] == [int(line.split()[0]) for line in lines]
