"""`vitrail convert`: one line when it is done, one when it cannot be done, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vitrail.cli.main import main


def test_there_and_back(tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, back = tmp_path / "own", tmp_path / "back"
    assert main(["convert", str(tiny_llava), str(own), "--to", "mistral"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{own}: consolidated.safetensors, ")
    assert out.endswith(" MB, Mistral's own format\n")
    assert err == ""
    assert main(["convert", str(own), str(back), "--to", "hf"]) == 0
    assert (back / "model.safetensors").read_bytes() == (tiny_llava / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "own"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{hf}", "{out}", "--to", "hf"], "is in Hugging Face's format already"),
        (["{hf}", "{hf}", "--to", "mistral"], "exists already"),
        (["{none}", "{out}", "--to", "mistral"], "there is no folder"),
        (["{hf}", "{out}"], "--to"),
        (["{hf}", "{out}", "--to", "gguf"], "gguf"),
    ],
)
def test_mistakes(
    words: list[str], said: str, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"hf": tiny_llava, "out": tmp_path / "out", "none": tmp_path / "none"}
    assert main(["convert", *(word.format(**places) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_told_before_anything_is_written(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_llava, tmp_path / "copy"))
    text = (
        (folder / "config.json").read_text().replace('"intermediate_size": 112', '"intermediate_size": 111')
    )
    (folder / "config.json").write_text(text)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "mistral"]) == 2
    assert "in the files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_convert_json_is_one_object(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(tiny_llava), str(out), "--to", "mistral", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["out"], told["format"], told["files"]) == (str(out), "mistral", ["consolidated.safetensors"])
    assert 0 < told["bytes"] < (out / "consolidated.safetensors").stat().st_size
