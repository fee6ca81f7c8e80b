"""weights/load.py and plan.py on small modules and tiny checkpoints: strictness, spellings, types, tying."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vitrail
from tests import tiny
from vitrail.errors import CheckpointError, InputError
from vitrail.files.safetensors import write_safetensors
from vitrail.weights import load as loading
from vitrail.weights.load import load_into
from vitrail.weights.mapped import keep_mapped
from vitrail.weights.names import canonical, saved_names
from vitrail.weights.safetensors_checkpoint import SafetensorsCheckpoint

Change = Callable[[dict[str, Tensor]], None]


class Small(nn.Module):
    """Two linears and a kept buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 3)
        self.two = nn.Linear(3, 2, bias=False)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)


def small() -> Small:
    with torch.device("meta"):
        return Small()


def small_tensors() -> dict[str, Tensor]:
    return {
        "one.weight": torch.arange(12.0).view(3, 4),
        "one.bias": torch.ones(3),
        "two.weight": torch.full((2, 3), 0.5, dtype=torch.bfloat16),
        "steps": torch.tensor([3, 4]),
    }


def write(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / name, tensors)
    return folder


def rewrite(source: Path, target: Path, change: Change) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, target)
    tensors = {name: tensor.clone() for name, tensor in load_file(target / "model.safetensors").items()}
    change(tensors)
    (target / "model.safetensors").unlink()
    return write(target, tensors)


def test_every_tensor_arrives(tmp_path: Path) -> None:
    model = small()
    assert load_into(model, write(tmp_path, small_tensors())) == torch.float32
    assert torch.equal(model.one.weight, small_tensors()["one.weight"])
    assert torch.equal(model.two.weight, torch.full((2, 3), 0.5))
    assert torch.equal(model.steps, torch.tensor([3, 4]))
    assert model.one.weight.requires_grad


def test_loaded_tensors_are_no_part_of_the_file(tmp_path: Path) -> None:
    model = small()
    load_into(model, write(tmp_path, small_tensors()))
    (tmp_path / "model.safetensors").write_bytes(b"")  # a mapped page would now be gone
    assert model.one.weight.sum() == 66


def test_one_report_names_everything(tmp_path: Path) -> None:
    tensors = small_tensors()
    del tensors["one.bias"], tensors["steps"]
    tensors |= {"two.weight": torch.ones(3, 2), "one.weight": torch.ones(3, 4, dtype=torch.int64)}
    tensors |= {f"more.{i}.x": torch.ones(1) for i in range(5)}
    model = small()
    with pytest.raises(CheckpointError) as caught:
        load_into(model, write(tmp_path, tensors))
    report = str(caught.value)
    assert "Small" in report
    assert str(tmp_path) in report
    assert "2 missing (one.bias, steps)" in report
    assert "5 unexpected (more.{0-4}.x)" in report
    assert "two.weight is (3, 2) in the files, (2, 3) in the model" in report
    assert "one.weight is torch.int64" in report
    assert "\n" not in report
    assert model.one.weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_types_by_object_and_name(tmp_path: Path, dtype: torch.dtype | str) -> None:
    model = small()
    assert load_into(model, write(tmp_path, small_tensors()), dtype=dtype) == torch.bfloat16
    assert model.one.weight.dtype == torch.bfloat16
    assert model.steps.dtype == torch.int64


def test_auto_is_the_config_s_type_else_the_files(tmp_path: Path) -> None:
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in small_tensors().items()}
    folder = write(tmp_path, tensors)
    assert load_into(small(), folder, dtype="auto") == torch.float16
    model = small()
    model.config = vitrail.MistralConfig(dtype="bfloat16")  # type: ignore[assignment]
    assert load_into(model, folder, dtype="auto") == torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "float99", torch.int32, 7, "load"])
def test_other_types_are_refused(tmp_path: Path, dtype: torch.dtype | str) -> None:
    with pytest.raises(InputError, match="dtype must be"):
        load_into(small(), write(tmp_path, small_tensors()), dtype=dtype)


def test_fp8_without_its_configuration_is_refused(tmp_path: Path) -> None:
    tensors = small_tensors() | {"two.weight": torch.ones(2, 3).to(torch.float8_e4m3fn)}
    with pytest.raises(CheckpointError, match="float8_e4m3fn"):
        load_into(small(), write(tmp_path, tensors))


# --- folders --------------------------------------------------------------------------------------------------


def _shards(folder: Path) -> dict[str, str]:
    tensors = small_tensors()
    where = {"one.weight": "a.safetensors", "one.bias": "b.safetensors", "two.weight": "a.safetensors"}
    where["steps"] = "b.safetensors"
    for file in ("a.safetensors", "b.safetensors"):
        write(folder, {name: tensors[name] for name in where if where[name] == file}, file)
    return where


def _index(folder: Path, weight_map: object) -> Path:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder


def test_shards_with_and_without_an_index(tmp_path: Path) -> None:
    where = _shards(tmp_path)
    for folder in (tmp_path, _index(tmp_path, where)):
        model = small()
        load_into(model, folder)
        assert model.one.weight.sum() == 66


@pytest.mark.parametrize(
    "file",
    [
        "../a.safetensors",
        "/etc/passwd",
        "sub/a.safetensors",
        "..\\a.safetensors",
        "a.bin",
        "",
        3,
        "x\0.safetensors",
        "C:a.safetensors",
        "\ud800.safetensors",
        "a\n.safetensors",
    ],
)
def test_an_index_never_leads_elsewhere(tmp_path: Path, file: object) -> None:
    where = _shards(tmp_path)
    with pytest.raises(CheckpointError, match="in the same folder was expected"):
        load_into(small(), _index(tmp_path, where | {"one.weight": file}))


def test_an_index_must_tell_the_truth(tmp_path: Path) -> None:
    where = _shards(tmp_path)
    wrong = {name: file for name, file in where.items() if name != "steps"} | {"ghost": "a.safetensors"}
    with pytest.raises(CheckpointError, match=r"lack: ghost and does not list .* hold: steps"):
        load_into(small(), _index(tmp_path, wrong))


def test_every_missing_or_broken_shard_is_named(tmp_path: Path) -> None:
    where = _shards(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be read.*b\.safetensors is truncated"):
        load_into(small(), _index(tmp_path, where))


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    _shards(tmp_path)
    write(tmp_path, {"steps": torch.zeros(2)}, "c.safetensors")
    with pytest.raises(CheckpointError, match="hold the same tensors: steps"):
        load_into(small(), tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    with pytest.raises(CheckpointError, match="weight_map"):
        load_into(small(), _index(tmp_path, weight_map))


def test_folders_without_readable_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_into(small(), tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        load_into(small(), tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"Mistral's own format, but no params\.json"):
        load_into(small(), tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        load_into(small(), tmp_path / "none")


# --- models ---------------------------------------------------------------------------------------------------

CLASSES = {
    "llava": vitrail.LlavaForConditionalGeneration,
    "mistral3": vitrail.Mistral3ForConditionalGeneration,
    "ministral3": vitrail.Mistral3ForConditionalGeneration,
}


@pytest.mark.parametrize("family", CLASSES)
def test_old_and_new_layout_are_one(tmp_path: Path, family: str) -> None:
    old = tiny.write_checkpoint(tmp_path / "old", family)
    assert any(name.startswith("language_model.model.") for name in load_file(old / "model.safetensors"))

    def to_new(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[canonical(name)] = tensors.pop(name)

    new = rewrite(old, tmp_path / "new", to_new)
    assert any(
        name.startswith("model.language_model.layers.") for name in load_file(new / "model.safetensors")
    )
    first, second = (CLASSES[family].from_pretrained(folder).state_dict() for folder in (old, new))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_tensor_under_both_spellings(tmp_path: Path) -> None:
    old = tiny.write_checkpoint(tmp_path / "old")

    def twice(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["language_model.lm_head.weight"].clone()

    with pytest.raises(CheckpointError, match="under two names"):
        CLASSES["llava"].from_pretrained(rewrite(old, tmp_path / "new", twice))


def test_names_that_are_written_are_read_back() -> None:
    model = tiny.model("llava")
    own = list(model.state_dict())
    written = saved_names(own)
    assert len(set(written.values())) == len(own)
    assert [canonical(written[name]) for name in own] == own
    assert saved_names(["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]) == {
        "model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "lm_head.weight": "lm_head.weight",
    }


def test_a_missing_head_is_tied_and_noted(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "a")
    folder = rewrite(
        source, tmp_path / "b", lambda tensors: tensors.__delitem__("language_model.lm_head.weight")
    )
    model = CLASSES["llava"].from_pretrained(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings
    assert model.config.text_config.tie_word_embeddings


def test_a_head_in_the_files_is_not_tied_whatever_the_config_says(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = CLASSES["llava"].from_pretrained(folder)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert torch.equal(
        model.lm_head.weight, load_file(folder / "model.safetensors")["language_model.lm_head.weight"]
    )
    assert not model.config.text_config.tie_word_embeddings


def test_a_missing_embedding_is_missing(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "a", "ministral3")
    name = "language_model.model.embed_tokens.weight"
    folder = rewrite(source, tmp_path / "b", lambda tensors: tensors.__delitem__(name))
    with pytest.raises(
        CheckpointError, match=r"2 missing \(model\.language_model\.embed_tokens\.weight, lm_head"
    ):
        CLASSES["ministral3"].from_pretrained(folder)


@pytest.mark.parametrize("biased", [True, False])
def test_the_files_decide_about_the_projector_s_biases(tmp_path: Path, biased: bool) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a", multimodal_projector_bias=biased)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["multimodal_projector_bias"] = not biased
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = CLASSES["llava"].from_pretrained(folder)
    assert model.config.multimodal_projector_bias is biased
    assert (model.model.multi_modal_projector.linear_2.bias is not None) is biased


def test_one_bias_alone_is_a_missing_tensor(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "a")
    name = "multi_modal_projector.linear_1.bias"
    folder = rewrite(source, tmp_path / "b", lambda tensors: tensors.__delitem__(name))
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.multi_modal_projector\.linear_1\.bias\)"):
        CLASSES["llava"].from_pretrained(folder)


def test_parts_of_a_checkpoint_load_alone(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a", "mistral3")
    whole = CLASSES["mistral3"].from_pretrained(folder)
    text = vitrail.MistralForCausalLM.from_pretrained(folder)
    tower = vitrail.PixtralVisionModel.from_pretrained(folder)
    assert torch.equal(text.lm_head.weight, whole.lm_head.weight)
    for part, inside in ((text.model, whole.model.language_model), (tower, whole.model.vision_tower)):
        state = inside.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
        assert len(state) == len(part.state_dict())


def test_a_text_model_s_own_folder_may_hold_nothing_else(tmp_path: Path) -> None:
    text = vitrail.MistralForCausalLM(tiny.config("mistral3").text_config)
    text.save_pretrained(tmp_path / "a")
    vitrail.MistralForCausalLM.from_pretrained(tmp_path / "a")
    folder = rewrite(
        tmp_path / "a", tmp_path / "b", lambda t: t.update({"vision_tower.ln_pre.weight": torch.ones(3)})
    )
    with pytest.raises(CheckpointError, match=r"1 unexpected \(vision_tower\.ln_pre\.weight\)"):
        vitrail.MistralForCausalLM.from_pretrained(folder)


def test_generate_a_mapped_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    model = vitrail.AutoModelForImageTextToText.from_pretrained(folder)
    ids = torch.tensor([[1, 5, 6]])
    keep_mapped(model, SafetensorsCheckpoint(folder))  # as for weights that are used where they are mapped
    model.generate(ids, max_new_tokens=2)
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was cut while in use"):
        model.generate(ids, max_new_tokens=2)


def test_load_a_file_that_is_cut_meanwhile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    real = loading._put

    def cut(*arguments: Any) -> None:
        os.truncate(folder / "model.safetensors", 20_000)
        real(*arguments)

    monkeypatch.setattr(loading, "_put", cut)
    with pytest.raises(CheckpointError, match="was cut while in use"):
        vitrail.AutoModelForImageTextToText.from_pretrained(folder)
