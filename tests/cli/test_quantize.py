"""`vitrail quantize`: the policy before, the report after, one line for a mistake, and models that answer."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import geometries, quantised, tiny
from vitrail.cli.main import main
from vitrail.files import safetensors_writer

Screen = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised.source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    tiny.image(40, 56).save(path)
    return path


@pytest.mark.parametrize("format", ["q4", "q8", "nf4"])
def test_quantised_and_asked(format: str, folder: Path, photo: Path, tmp_path: Path, capsys: Screen) -> None:
    out = tmp_path / format
    assert main(["quantize", str(folder), str(out), "--format", format]) == 0
    said, err = capsys.readouterr()
    assert err == ""
    assert "language model" in said
    assert "largest relative errors" in said
    assert said.splitlines()[-1].startswith(f"{out}: model.safetensors, ")
    assert "bits a weight, relative error 0.0" in said.splitlines()[-1]
    assert main(["ask", str(photo), "What?", "--model", str(out), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip() != ""


def test_the_table_shows_the_policy(folder: Path, tmp_path: Path, capsys: Screen) -> None:
    words = [
        "--format",
        "q4",
        "--group",
        "64",
        "--lm-head",
        "bf16",
        "--vision",
        "bf16",
        "--keep",
        "layers.0.*down_proj",
    ]
    assert main(["quantize", str(folder), str(tmp_path / "q"), *words, "--keep", "*.layers.0"]) == 2
    assert "keep names what" in capsys.readouterr().err
    words[-1] = "*.layers.0"
    assert main(["quantize", str(folder), str(tmp_path / "q"), *words]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(row.startswith("vision tower bf16 7 ") for row in rows)
    assert any(row.startswith("vision tower bf16 7 ") and row.endswith("kept") for row in rows)  # its layer 0
    assert any(row.startswith("language model bf16 7 ") and row.endswith("kept") for row in rows)
    assert any(row.startswith("language model q4, groups of 64 5 ") for row in rows)
    assert any(
        row.startswith("language model q4, groups of 32 1 ") and "64 does not divide" in row for row in rows
    )
    assert any(row.startswith("head bf16 1 ") for row in rows)
    assert any(row.startswith("embeddings q8, groups of 64 1 ") for row in rows)


def test_the_folder_that_one_is_in(
    folder: Path, tmp_path: Path, capsys: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", str(tmp_path / "here")):
        assert main(["quantize", str(folder), out, "--format", "q8"]) == 2
        assert "cannot be replaced by a new one" in capsys.readouterr().err
    assert main(["quantize", str(folder), "inside/deep", "--format", "q8"]) == 0
    assert [path.name for path in (tmp_path / "here" / "inside").iterdir()] == ["deep"]


def test_the_report_for_programs(folder: Path, tmp_path: Path, capsys: Screen) -> None:
    assert main(["quantize", str(folder), str(tmp_path / "q"), "--format", "q4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert set(report) == {
        "model", "source_formats", "out", "quantization_config", "files", "files_kept_of_an_earlier_run", "policy",
        "weights", "bytes", "bits_per_weight", "relative_error", "worst", "layers",
    }  # fmt: skip
    assert report["model"] == str(folder)
    assert report["source_formats"] == []
    assert report["files"] == ["model.safetensors"]
    assert (
        sum(row["bytes"] for row in report["policy"])
        == report["bytes"]
        == sum(x["bytes"] for x in report["layers"])
    )
    assert sum(row["weights"] for row in report["policy"]) == report["weights"]
    worst = report["worst"][0]
    assert worst["format"] == "q4"
    assert 0.06 < worst["relative_error"] < 0.1
    assert set(worst) == {"name", "format", "group", "weights", "bytes", "relative_error"}


def test_every_layers_error(folder: Path, tmp_path: Path, capsys: Screen) -> None:
    assert main(["quantize", str(folder), str(tmp_path / "q"), "--format", "q4", "--layers"]) == 0
    said = capsys.readouterr().out
    layers = [
        name for name, module in quantised.load(tmp_path / "q").named_modules() if hasattr(module, "packed")
    ]
    assert len(layers) > 30
    assert all(f" {name}.weight " in said for name in layers)


def test_a_terminal_shows_how_far_it_is(
    folder: Path, tmp_path: Path, capsys: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["quantize", str(folder), str(tmp_path / "q"), "--format", "q8"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"\d+(\.\d+)?/\d+(\.\d+)? [kM]?B", err)


def test_layers_that_no_group_divides_are_told(tiny_llava: Path, tmp_path: Path, capsys: Screen) -> None:
    assert main(["quantize", str(tiny_llava), str(tmp_path / "q"), "--format", "q4", "--json"]) == 0
    policy = json.loads(capsys.readouterr().out)["policy"]
    assert {row["why"] for row in policy} >= {"no group divides 80 columns", "no group divides 112 columns"}
    assert quantised.load(tmp_path / "q").get_input_embeddings().weight.shape == (512, 80)


def test_a_source_that_is_quantised_already_is_told(folder: Path, tmp_path: Path, capsys: Screen) -> None:
    assert main(["quantize", str(folder), str(tmp_path / "a"), "--format", "nf4"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "q4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "is quantised already (nf4)" in err
    assert json.loads(out)["source_formats"] == ["nf4"]
    assert "language model" in out


def test_a_tied_head_is_told(tmp_path: Path, capsys: Screen) -> None:
    source = quantised.source(tmp_path / "source", "ministral3")
    assert main(["quantize", str(source), str(tmp_path / "q"), "--format", "q4"]) == 0
    assert "head tied 1 it is the embeddings' table" in " ".join(capsys.readouterr().out.split())


def test_mistrals_own_files_and_text_models(tmp_path: Path, capsys: Screen) -> None:
    params = geometries.small("Ministral 3 8B") | {"dim": 64, "hidden_dim": 96}
    tensors = geometries.native_tensors(geometries.model_of(params), params)
    both = geometries.write_native(tmp_path / "both", params, tensors)
    geometries.model_of(params, seed=1).save_pretrained(both)
    for read_as in ("hf", "mistral"):
        out = str(tmp_path / read_as)
        assert main(["quantize", str(both), out, "--format", "q8", "--from", read_as]) == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("hf", "mistral")]
    assert files[0] != files[1]  # the two formats hold different weights here
    config = vitrail.MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    tiny.randomize(vitrail.MistralForCausalLM(config)).save_pretrained(tmp_path / "text")
    assert main(["quantize", str(tmp_path / "text"), str(tmp_path / "text-q4"), "--format", "q4"]) == 0
    capsys.readouterr()
    loaded = vitrail.AutoModelForCausalLM.from_pretrained(tmp_path / "text-q4")
    assert loaded(torch.tensor([[1, 2]])).logits.shape == (1, 2, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{folder}", "{out}"], "--format"),
        (["{folder}", "{out}", "--format", "q5"], "q5"),
        (["{folder}", "{folder}", "--format", "q4"], "exists already"),
        (["{none}", "{out}", "--format", "q4"], "there is no folder"),
        (["{folder}", "{out}", "--format", "q4", "--keep", "nonsense"], "does not have: nonsense"),
        (["{folder}", "{out}", "--format", "q4", "--group", "48"], "48"),
        (["{folder}", "{out}", "--format", "nf4", "--group", "32"], "--group 32 does not go with nf4"),
        (["{folder}", "{out}", "--format", "nf4", "--lm-head", "q8"], "--lm-head q8 does not go with nf4"),
        (["{folder}", "{out}", "--format", "nf4", "--vision", "q8"], "--vision q8 does not go with nf4"),
        (["{folder}", "{out}", "--format", "nf4", "--keep", "nonsense"], "does not have: nonsense"),
        (["{folder}", "{out}", "--format", "q4", "--from", "mistral"], "params.json"),
        (["{folder}", "{out}", "--format", "q4", "--revision", "main"], "--revision is for names on the hub"),
        (["{adapter}", "{out}", "--format", "q4"], "holds an adapter, not a model; "),
    ],
)
def test_mistakes(words: list[str], said: str, folder: Path, tmp_path: Path, capsys: Screen) -> None:
    adapter = tmp_path / "adapter"
    model = quantised.load(folder)
    model.add_adapter(vitrail.LoraConfig(target_modules=["q_proj"], base_model_name_or_path=str(folder)))
    model.save_pretrained(adapter)
    capsys.readouterr()
    places = {"folder": folder, "out": tmp_path / "out", "none": tmp_path / "none", "adapter": adapter}
    assert main(["quantize", *(word.format(**places) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_full_disk_is_one_line(
    folder: Path, tmp_path: Path, capsys: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_values(stream: Any, tensor: torch.Tensor) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_writer, "write_values", write_values)
    assert main(["quantize", str(folder), str(tmp_path / "q"), "--format", "q4", "--json"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"vitrail: {tmp_path / 'q'} cannot be written: No space left on device.\n")
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from vitrail.cli.main import main
sys.exit(main(["quantize", sys.argv[1], sys.argv[2], "--format", "q4"]))
"""


@pytest.mark.slow
def test_the_systems_refusal_is_one_line(folder: Path, tmp_path: Path) -> None:
    """Really refused, in the middle of a file."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(tmp_path / "q")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"vitrail: {tmp_path / 'q'} cannot be written: File too large.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["q4", "nf4"])
def test_info_says_what_each_is(format: str, folder: Path, tmp_path: Path, capsys: Screen) -> None:
    out = tmp_path / "q"
    assert main(["quantize", str(folder), str(out), "--format", format, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["info", str(out), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    weights = info["weights"]
    assert weights["bits_per_weight"] == report["bits_per_weight"]
    assert weights["quantized"] == {"q4": "q4, q8", "nf4": "nf4"}[format]
    memory = info["memory"]["bfloat16"]
    if format == "q4":
        assert memory["mapped"] > 0.85 * memory["weights"]
        assert memory["while_loading"] == memory["weights"] - memory["mapped"]
    else:
        assert memory["mapped"] == 0
    assert main(["info", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{report['bits_per_weight']:.2f} bits a weight" in said
    assert ("mapped" in said) == (format == "q4")


def test_info_of_a_checkpoint_whose_weights_are_elsewhere(
    folder: Path, tmp_path: Path, capsys: Screen
) -> None:
    """By its configuration alone the same is told."""
    assert main(["quantize", str(folder), str(tmp_path / "q"), "--format", "q4", "--json"]) == 0
    capsys.readouterr()
    found = []
    for _ in range(2):
        assert main(["info", str(tmp_path / "q"), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        (tmp_path / "q" / "model.safetensors").unlink(missing_ok=True)
    here, away = found
    assert (here["weights"]["here"], away["weights"]["here"]) == (True, False)
    assert away["weights"]["quantized"] == "vitrail"
    assert away["parameters"] == here["parameters"]
    for form in ("float32", "bfloat16"):
        assert away["memory"][form]["weights"] == here["memory"][form]["weights"]
