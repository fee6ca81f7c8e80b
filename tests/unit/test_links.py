"""Links in a checkpoint's folder are followed within it and into the hub cache's blobs, and nowhere else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests import tiny
from vitrail.errors import CheckpointError, ConfigError, VitrailError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.weights.convert import convert

LOADERS = [
    vitrail.AutoModelForImageTextToText,
    vitrail.AutoProcessor,
    vitrail.AutoTokenizer,
    vitrail.AutoConfig,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model")


def lead_out(file: Path) -> Path:
    """Move a file out of its folder and leave a link."""
    outside = file.parent.parent / "outside"
    outside.mkdir(exist_ok=True)
    moved = outside / file.name
    if file.exists():
        file.rename(moved)
    else:
        moved.write_text("{}")
    file.symlink_to(moved)
    return moved


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "LICENSE"]
)
def test_file_linked_out_of_a_checkpoint_is_refused(folder: Path, name: str) -> None:
    lead_out(folder / name)
    for loader in LOADERS:
        with pytest.raises(CheckpointError, match=f"{name} is a link to .*is not followed"):
            loader.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="is not followed"):
        vitrail.GenerationConfig.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="is not followed"):
        convert(folder, folder.parent / "out", "mistral")


def test_system_file_as_a_tokenizer_or_template_is_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/etc/passwd")
        with pytest.raises(CheckpointError, match=f"{name} is a link to /etc/passwd"):
            vitrail.AutoTokenizer.from_pretrained(folder)
        (folder / name).unlink()
        if kept is not None:
            (folder / name).write_bytes(kept)
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool.jinja").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="is not followed"):
        vitrail.AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(more)
    more.symlink_to("/etc")
    vitrail.AutoTokenizer.from_pretrained(folder)  # no template there
    more.unlink()


def test_links_within_a_folder_and_of_the_whole_folder_are_followed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.bin")
    (folder / "model.safetensors").symlink_to("weights.bin")
    whole = folder.parent / "link"
    whole.symlink_to(folder)
    for loader in LOADERS:
        loader.from_pretrained(whole)


def test_snapshot_links_to_its_blobs_only(tmp_path: Path, folder: Path) -> None:
    repository = tmp_path / "models--owner--model"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    for loader in LOADERS:
        loader.from_pretrained(snapshot)
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is not followed"):
        vitrail.AutoConfig.from_pretrained(snapshot)


def test_links_the_environment_allows_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_out(folder / "model.safetensors")
    monkeypatch.setenv("VITRAIL_FOLLOW_LINKS", "1")
    vitrail.AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "a/b.safetensors"]
)
def test_index_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    shutil.copyfile(folder / "model.safetensors", folder.parent / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="in the same folder was expected"):
        vitrail.AutoModelForImageTextToText.from_pretrained(folder)


def test_shard_linked_out_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.model("llava").save_pretrained(folder, max_shard_size="200KB")
    lead_out(sorted(folder.glob("model-*.safetensors"))[1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-.* is a link"):
        vitrail.AutoModelForImageTextToText.from_pretrained(folder)


def adapter(folder: Path, base: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": base})
    )
    return folder


def test_adapter_that_is_its_own_base_is_one_sentence(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one", "../two"), adapter(tmp_path / "two", "../one")
    own = [adapter(tmp_path / "dot", "."), adapter(tmp_path / "whole", str(tmp_path / "whole"))]
    for folder in (one, two, *own):
        for loader in (vitrail.AutoModelForImageTextToText, vitrail.AutoProcessor, vitrail.AutoConfig):
            with pytest.raises(
                CheckpointError, match=r"as its base model, and that is an adapter too|holds an adapter"
            ):
                loader.from_pretrained(folder)


def test_adapter_linked_out_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    model = vitrail.AutoModelForImageTextToText.from_pretrained(folder)
    model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    lead_out(tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is not followed"):
        model.load_adapter(tmp_path / "adapter", "other")


def test_many_shards_without_an_index_are_looked_at_once(tmp_path: Path) -> None:
    """One name of 99,999 shards beside a thousand more: the missing ones are counted once, and told in short."""
    for number in range(1, 1001):
        (tmp_path / f"model-{number:05d}-of-99999.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(tiny.config_dict("llava")))
    with pytest.raises(CheckpointError, match="lacks 98999 of its shards") as caught:
        vitrail.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 1000
    assert len(CheckpointFolder.at(tmp_path).files) == 1001


@pytest.mark.parametrize("base", [3, [["a"]], {}, "a\0b", "a/" * 100_000, True])
def test_base_that_is_no_name_is_one_sentence(base: Any, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "one", base)
    with pytest.raises(ConfigError, match="base_model_name_or_path must be a name or a path") as caught:
        vitrail.AutoModelForImageTextToText.from_pretrained(folder)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["~nobody-of-that-name", "~nobody-of-that-name/model", "x" * 300])
def test_home_of_nobody_is_one_sentence(name: str, tmp_path: Path) -> None:
    for loader in LOADERS:
        with pytest.raises(VitrailError):
            loader.from_pretrained(name, local_files_only=True)
    with pytest.raises(VitrailError):
        vitrail.AutoModelForImageTextToText.from_pretrained(
            adapter(tmp_path / "one", name), local_files_only=True
        )
    with pytest.raises(VitrailError):
        vitrail.load(tmp_path / "one")
