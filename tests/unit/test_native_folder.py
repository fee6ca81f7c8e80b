"""Folders in Mistral's own format, in both, and in neither: what is chosen, and what is said of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import geometries
from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.weights.convert import convert

PARAMS = geometries.small("Ministral 3 8B")
load = vitrail.Mistral3ForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return geometries.native_tensors(geometries.model_of(PARAMS), PARAMS)


@pytest.fixture(scope="module")
def both(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with both formats; the native weights are another model's (of seed 1)."""
    folder = tmp_path_factory.mktemp("both")
    geometries.model_of(PARAMS).save_pretrained(folder)
    other = geometries.model_of(PARAMS, seed=1)
    return geometries.write_native(folder, PARAMS, geometries.native_tensors(other, PARAMS))


def head(model: Any) -> torch.Tensor:
    return model.lm_head.weight


def test_format_chooses_where_both_are(both: Path) -> None:
    first = head(load(both))
    assert torch.equal(first, head(load(both, format="hf")))
    own = load(both, format="mistral")
    assert not torch.equal(first, head(own))
    assert own.config.image_break_token_id == 12
    auto = vitrail.AutoModelForImageTextToText.from_pretrained(both, format="mistral")
    assert torch.equal(head(auto), head(own))
    assert vitrail.AutoConfig.from_pretrained(both, format="mistral").image_end_token_id == 13
    with pytest.raises(InputError, match="'hf' or 'mistral', got 'onnx'"):
        load(both, format="onnx")


def test_the_complete_format_is_taken(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "copy"))
    (folder / "model.safetensors").unlink()
    assert CheckpointFolder(folder).layout == "mistral"
    with pytest.raises(
        CheckpointError, match=r"no model\.safetensors.*leave format out or say format='mistral'"
    ):
        load(folder, format="hf")
    (folder / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"no params\.json, which says"):
        load(folder)
    with pytest.raises(CheckpointError, match=r"no params\.json, so it is not in Mistral's own"):
        load(folder, format="mistral")


def test_neither_format(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither config\.json .* nor params\.json"):
        load(tmp_path)


def test_shards_with_and_without_an_index(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = geometries.write_native(tmp_path / "m", PARAMS, tensors, shards=3)
    whole = head(load(folder))
    written = convert(folder, tmp_path / "hf", "hf")
    assert len(written.files) == 3
    back = convert(tmp_path / "hf", tmp_path / "m2", "mistral").folder
    assert (back / "consolidated.safetensors.index.json").is_file()
    assert torch.equal(head(load(back)), whole)
    (folder / "consolidated-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of its shards: consolidated-00002-of-00003"):
        load(folder)
    (back / "consolidated-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated-00003-of-00003\.safetensors cannot be read"):
        load(back)


def test_index_and_files_disagree(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = geometries.write_native(tmp_path, PARAMS, tensors, shards=2)
    where = {
        name: f"consolidated-0000{number + 1}-of-00002.safetensors"
        for number in (0, 1)
        for name in list(tensors)[number::2]
    }
    del where["norm.weight"]
    where["output.bias"] = "consolidated-00001-of-00002.safetensors"
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError, match=r"lack: output\.bias and does not list .* norm\.weight"):
        load(folder)


def test_one_report_in_the_format_s_own_words(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    wrong = dict(tensors)
    del wrong["layers.1.attention.wq.weight"]
    wrong["extra.weight"] = torch.ones(2)
    wrong["layers.0.attention.wk.weight"] = torch.ones(6, 64)
    folder = geometries.write_native(tmp_path, PARAMS, wrong)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    report = str(caught.value)
    assert "1 missing (layers.1.attention.wq.weight)" in report
    assert "1 unexpected (extra.weight)" in report
    assert "k_proj.weight is (6, 64) in the files, (16, 64) in the model" in report
    assert "params.json and the weights" in report
    with pytest.raises(CheckpointError, match=r"no name in Hugging Face's format: extra\.weight"):
        convert(folder, tmp_path / "out", "hf")


def test_a_tensor_twice(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = geometries.write_native(tmp_path, PARAMS, tensors, shards=2)
    geometries.write_native(tmp_path / "more", PARAMS, tensors)
    shutil.move(tmp_path / "more" / "consolidated.safetensors", folder / "consolidated-more.safetensors")
    with pytest.raises(CheckpointError, match="hold the same tensors"):
        load(folder)


def test_fp8_is_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    said = PARAMS | {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    folder = geometries.write_native(tmp_path / "said", said, tensors)
    assert vitrail.AutoConfig.from_pretrained(folder).quantization_config["quant_method"] == "fp8"
    with pytest.raises(UnsupportedError, match="fp8"):
        load(folder)
    with pytest.raises(UnsupportedError, match="fp8"):
        convert(folder, tmp_path / "out", "hf")
    scales = tensors | {"layers.0.attention.wq.qscale_weight": torch.ones(())}
    with pytest.raises(UnsupportedError, match="fp8 weights in Mistral's own format"):
        load(geometries.write_native(tmp_path / "unsaid", PARAMS, scales))


def test_the_head_that_is_not_there_is_tied(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The files decide, whatever params.json says."""
    without = {name: tensor for name, tensor in tensors.items() if name != "output.weight"}
    model = load(geometries.write_native(tmp_path / "a", PARAMS, without))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model = load(geometries.write_native(tmp_path / "b", PARAMS | {"tied_embeddings": True}, tensors))
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, tensors["output.weight"])


# --- convert ----------------------------------------------------------------------------------------------------


def test_nothing_half_written(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrail.weights.convert.copy_safetensors", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        convert(both, tmp_path / "out", "hf")
    assert list(tmp_path.iterdir()) == []


def test_what_convert_refuses(both: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        convert(both, both, "hf")
    with pytest.raises(InputError, match="'hf' or 'mistral'"):
        convert(both, tmp_path / "out", "gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no params\.json .* nor has it a config\.json: it holds no"):
        convert(tmp_path / "empty", tmp_path / "out", "hf")
    geometries.model_of(PARAMS).save_pretrained(tmp_path / "hf")
    with pytest.raises(
        CheckpointError, match=r"no params\.json to convert from; it is in Hugging Face's format already"
    ):
        convert(tmp_path / "hf", tmp_path / "out", "hf")
    config = json.loads((both / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 0.5
    shutil.copytree(both, tmp_path / "both")
    (tmp_path / "both" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="describe different models"):
        convert(tmp_path / "both", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_progress_reaches_the_end(both: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    written = convert(both, tmp_path / "out", "hf", progress=lambda *step: seen.append(step))
    assert seen[0] == ("model.safetensors", 0, written.size)
    assert seen[-1] == ("model.safetensors", written.size, written.size)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
