"""weights/save.py: what is written, what is split, and that an error leaves nothing behind."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vitrail
from tests import tiny
from vitrail.errors import CheckpointError, InputError
from vitrail.files.writing import write_text
from vitrail.train import metrics
from vitrail.train.plot import draw_curves
from vitrail.weights import save as saving
from vitrail.weights.save import save, shard_bytes


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("size", "count"),
    [(1, 1), ("1000", 1000), ("200KB", 200_000), ("5GB", 5 * 10**9), ("1.5 MiB", 1572864), ("2gib", 2**31)],
)
def test_sizes(size: int | str, count: int) -> None:
    assert shard_bytes(size) == count


@pytest.mark.parametrize("size", [0, -1, "", "GB", "5 apples", True, "1e9", "0KB", None])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(InputError, match="max_shard_size"):
        shard_bytes(size)


def test_shards_hold_everything_once(tmp_path: Path) -> None:
    model = tiny.model("llava")
    save(model, tmp_path, max_shard_size="200KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text("utf-8"))
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    held = {name: shard for shard in shards for name in load_file(tmp_path / shard)}
    assert held == index["weight_map"]
    sizes = [sum(t.nbytes for t in load_file(tmp_path / shard).values()) for shard in shards]
    assert max(sizes) <= 200_000
    assert sum(sizes) == index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())


def test_a_larger_tensor_gets_its_own_shard(tmp_path: Path) -> None:
    save(tiny.model("llava"), tmp_path, max_shard_size=1000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text("utf-8"))
    shard = index["weight_map"]["language_model.lm_head.weight"]
    assert list(load_file(tmp_path / shard)) == ["language_model.lm_head.weight"]


def test_another_save_replaces_the_first(tmp_path: Path) -> None:
    model = tiny.model("llava")
    (tmp_path / "notes.txt").write_text("mine")
    save(model, tmp_path, max_shard_size="200KB")
    save(model, tmp_path)
    assert _names(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]
    save(model, tmp_path, max_shard_size="400KB")
    assert "model.safetensors" not in _names(tmp_path)


def test_a_model_can_be_saved_where_it_came_from(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    model = vitrail.LlavaForConditionalGeneration.from_pretrained(folder)
    before = (folder / "model.safetensors").read_bytes()
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["LlavaForConditionalGeneration", "MistralForCausalLM", "merged"])
def test_save_pretrained_a_model_that_generates_keeps_how_it_does(kind: str, tmp_path: Path) -> None:
    """End ids and sampling settings go with the weights, after an adapter was merged too."""
    config = {"do_sample": True, "temperature": 0.15, "eos_token_id": [2, 3], "max_new_tokens": 7}
    folder = tiny.write_checkpoint(tmp_path / "a")
    loader = getattr(vitrail, "LlavaForConditionalGeneration" if kind == "merged" else kind)
    model = loader.from_pretrained(folder)
    model.generation_config = vitrail.GenerationConfig(**config)
    if kind == "merged":
        model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
        model = model.merge_and_unload()
    model.save_pretrained(tmp_path / "b")
    held = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert {name: held[name] for name in config} == config
    again = loader.from_pretrained(tmp_path / "b")
    assert again.generation_config.to_dict() == model.generation_config.to_dict()


def test_save_pretrained_a_bare_tower_writes_no_generation_config(tmp_path: Path) -> None:
    tiny.model("llava").model.vision_tower.save_pretrained(tmp_path / "tower")
    assert "generation_config.json" not in _names(tmp_path / "tower")


def test_a_tied_head_is_not_written(tmp_path: Path) -> None:
    model = tiny.model("ministral3")
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lm_head" in name]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    save(tiny.model("llava"), tmp_path / "a")
    (tmp_path / "plain").write_text("")
    for name in _names(tmp_path / "a"):
        assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) == stat.S_IMODE(
            (tmp_path / "plain").stat().st_mode
        )


def test_a_state_dict_of_the_caller(tmp_path: Path) -> None:
    model = tiny.model("llava")
    save(
        model,
        tmp_path,
        state_dict={"lm_head.weight": torch.ones(2, 3), "model.vision_tower.ln_pre.weight": torch.ones(1)},
    )
    assert set(load_file(tmp_path / "model.safetensors")) == {
        "language_model.lm_head.weight",
        "vision_tower.ln_pre.weight",
    }


@pytest.mark.parametrize("where", ["weights", "config", "replace"])
def test_an_error_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model = tiny.model("llava")
    save(model, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in _names(tmp_path)}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    if where == "weights":
        monkeypatch.setattr(saving, "write_safetensors", full)
    elif where == "config":
        monkeypatch.setattr(type(model.config), "save_pretrained", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        save(tiny.model("llava", seed=1), tmp_path)
    with pytest.raises(CheckpointError):
        save(tiny.model("llava", seed=1), tmp_path / "new")
    monkeypatch.undo()
    assert {name: (tmp_path / name).read_bytes() for name in _names(tmp_path)} == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file"):
        save(tiny.model("llava"), tmp_path / "x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tiny.model("llava"), tmp_path / "x" / "y")


def test_a_model_without_values_is_not_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = vitrail.LlavaForConditionalGeneration(tiny.config("llava"))
    with pytest.raises(InputError, match=r"without values.*layers\.\{0-2\}"):
        save(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_links_planted_under_names_of_scratch_files_are_not_followed(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    own = f"{os.getpid()}-{threading.get_ident()}.partial"
    for name in (f".a.json.{own}", f".metrics.jsonl.{own}", ".metrics.jsonl.part", ".curves.png.part"):
        (folder / name).symlink_to(victim)
    write_text(folder / "a.json", "new")
    metrics.append(folder, {"step": 1, "loss": 2.0})
    metrics.cut(folder, 5)
    draw_curves(metrics.read(folder), folder / "curves.png")
    assert victim.read_text() == "precious"
    assert (folder / "a.json").read_text() == "new"
    assert metrics.read(folder) == [{"step": 1, "loss": 2.0}]
    assert not (folder / "a.json").is_symlink() and not (folder / "curves.png").is_symlink()
