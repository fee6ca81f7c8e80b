"""CheckpointFolder, what takes one, and a checkpoint's file that is not safetensors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vitrail
from tests.hub_server import HubServer
from vitrail import auto
from vitrail.errors import CheckpointError, InputError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.safetensors import TensorSpec
from vitrail.weights import checkpoint as checkpoints
from vitrail.weights.convert import convert
from vitrail.weights.safetensors_checkpoint import SafetensorsCheckpoint

NAME = "owner/tiny"


def test_open_folder_is_a_path_and_opens_as_itself(tiny_llava: Path) -> None:
    folder = CheckpointFolder.open(tiny_llava)
    assert Path(folder) == tiny_llava and os.fspath(folder) == str(folder) == str(tiny_llava)
    assert CheckpointFolder.open(folder) is folder and CheckpointFolder.at(folder, format="hf") is folder
    assert (folder.layout, folder.commit) == ("hf", None)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= folder.files
    with pytest.raises(CheckpointError, match="is no folder"):
        CheckpointFolder.at("owner/model")


def test_open_in_another_format_is_another_folder(tiny_llava: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    convert(tiny_llava, both, "mistral")
    shutil.copytree(tiny_llava, both, dirs_exist_ok=True)
    folder = CheckpointFolder.open(both)
    other = CheckpointFolder.open(folder, format="mistral")
    assert (folder.layout, other.layout, other.path) == ("hf", "mistral", folder.path)
    with pytest.raises(InputError, match="format must be 'hf' or 'mistral'"):
        CheckpointFolder.open(folder, format="gguf")
    with pytest.raises(CheckpointError, match=r"has no params\.json"):
        _ = CheckpointFolder.open(tiny_llava, format="mistral").layout


def test_json_is_read_once_and_a_reader_s_change_stays_his(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": {"b": 1}}')
    folder = CheckpointFolder(tmp_path)
    folder.json("config.json")["a"]["b"] = 2
    (tmp_path / "config.json").write_text('{"a": {"b": 3}}')
    assert folder.json("config.json") == {"a": {"b": 1}}
    assert folder.json("processor_config.json") == {}


def test_from_pretrained_of_an_open_folder_is_that_of_its_path(tiny_mistral3: Path) -> None:
    folder = CheckpointFolder.open(tiny_mistral3)
    kinds: tuple[Any, ...] = (vitrail.AutoConfig, vitrail.GenerationConfig, vitrail.AutoImageProcessor)
    for kind in kinds:
        assert kind.from_pretrained(folder).to_dict() == kind.from_pretrained(tiny_mistral3).to_dict()
    given = vitrail.AutoProcessor.from_pretrained(folder)
    assert given.to_dict() == vitrail.AutoProcessor.from_pretrained(tiny_mistral3).to_dict()
    assert given.tokenizer.get_vocab() == vitrail.AutoTokenizer.from_pretrained(folder).get_vocab()
    processor, model = auto.load(folder)
    assert processor.chat_template == given.chat_template
    expected = vitrail.Mistral3ForConditionalGeneration.from_pretrained(tiny_mistral3)
    assert model.config.name_or_path == expected.config.name_or_path == str(tiny_mistral3)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_load_of_an_adapter_is_its_model_with_the_adapter_on(tiny_llava: Path, tmp_path: Path) -> None:
    model = vitrail.AutoModelForImageTextToText.from_pretrained(tiny_llava)
    config = vitrail.LoraConfig(target_modules=["q_proj"], base_model_name_or_path=str(tiny_llava))
    model.add_adapter(config)
    model.save_adapter(tmp_path)
    processor, loaded = auto.load(tmp_path)
    assert isinstance(processor, vitrail.PixtralProcessor) and loaded.active_adapters() == ["default"]


def test_weights_come_last_and_of_the_commit_that_was_opened(
    hub: HubServer, tiny_llava: Path, tmp_path: Path
) -> None:
    commit = hub.add(NAME, tiny_llava)
    folder = CheckpointFolder.open(NAME, HubOptions(cache_dir=tmp_path / "cache"))
    assert (folder.name, folder.commit) == (NAME, commit)
    assert "model.safetensors" not in folder.files and folder.layout == "hf"
    changed = Path(shutil.copytree(tiny_llava, tmp_path / "changed"))
    (changed / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    assert hub.add(NAME, changed) != commit
    folder.fetch_weights()
    assert "model.safetensors" in folder.files and folder.commit == commit
    assert folder.path == CheckpointFolder.open(folder, format="hf").path


def test_hub_options_take_their_keywords_only() -> None:
    keywords = {"revision": "v1", "token": "t", "local_files_only": True, "dtype": "auto"}
    assert HubOptions.take(keywords) == HubOptions("v1", "t", None, True, False)
    assert keywords == {"dtype": "auto"}


class NumpyCheckpoint:
    """A toy format: one .npz file with float32 arrays."""

    config_name = "config.json"

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder
        self.paths = [folder.path / "model.npz"]
        self._arrays = dict(np.load(self.paths[0]))
        self.kind = folder.json(self.config_name)["model_type"]

    def names(self) -> list[str]:
        return [*self._arrays]

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(torch.float32, self._arrays[name].shape)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name])

    def copies(self, name: str) -> bool:
        return False

    def shown(self, name: str) -> str:
        return f"array {name}"


def test_model_loads_through_the_interface_from_a_file_of_another_kind(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_llava, tmp_path, dirs_exist_ok=True)
    stored = SafetensorsCheckpoint(tmp_path)
    arrays = {name: stored.tensor(name).numpy() for name in stored.names()}
    np.savez(tmp_path / "model.npz", **arrays)
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setitem(checkpoints.READERS, "hf", NumpyCheckpoint)
    model = vitrail.AutoModelForImageTextToText.from_pretrained(tmp_path)
    expected = vitrail.AutoModelForImageTextToText.from_pretrained
    monkeypatch.undo()
    for name, tensor in expected(tiny_llava).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    monkeypatch.setitem(checkpoints.READERS, "hf", NumpyCheckpoint)
    np.savez(tmp_path / "model.npz", **dict(list(arrays.items())[:-1]))
    with pytest.raises(CheckpointError, match="1 missing"):
        expected(tmp_path)
