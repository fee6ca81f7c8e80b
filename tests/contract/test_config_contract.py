"""Configurations: defaults, and round trips through dict, JSON and folder, to transformers and back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import vitrail
from tests.contract.differences import ABSENT, DEFAULT_VALUES

VISION = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3, "patch_size": 7, "hidden_act": "silu",
          "image_size": 98, "intermediate_size": 50, "rope_theta": 500.0, "initializer_range": 0.03}  # fmt: skip
TEXT = {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 2, "head_dim": 12,
        "vocab_size": 77, "intermediate_size": 60, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
        "max_position_embeddings": 100, "eos_token_id": [2, 5], "pad_token_id": 11, "use_cache": False}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25}
BOTH = {"vision_config": VISION, "text_config": {**TEXT, "rope_scaling": YARN}, "image_token_index": 10}
SETTINGS: dict[str, dict[str, Any]] = {
    "PixtralVisionConfig": VISION,
    "MistralConfig": {**TEXT, "tie_word_embeddings": True},
    "LlavaConfig": {**BOTH, "vision_feature_layer": [-2, 1], "multimodal_projector_bias": False},
    "Mistral3Config": {
        **BOTH,
        "spatial_merge_size": 3,
        "projector_hidden_act": "relu",
        "vision_feature_layer": -2,
    },
}
NAMES = pytest.mark.parametrize("name", SETTINGS)


def ours(name: str, **more: Any) -> Any:
    return getattr(vitrail, name)(**SETTINGS[name], **more)


def theirs(name: str, **more: Any) -> Any:
    """transformers 4.57 takes parts as dicts only with their model_type."""
    settings = json.loads(json.dumps(SETTINGS[name]))
    for part, kind in (("vision_config", "pixtral"), ("text_config", "mistral")):
        if part in settings:
            settings[part]["model_type"] = kind
    return getattr(transformers, name)(**settings, **more)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parts by dotted path; the rope settings stay one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key.endswith("_config"):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def assert_agrees(mine: Any, reference: Any, left_out: frozenset[str] = frozenset()) -> None:
    """Every value that our configuration writes is the reference's attribute of that name, None if it has none."""
    written = {path: value for path, value in flat(mine.to_dict()).items() if path not in left_out}
    assert len(written) > 10
    for path, value in written.items():
        holder = reference
        *parts, last = path.split(".")
        for part in parts:
            holder = getattr(holder, part)
        found = getattr(holder, last, None)
        if isinstance(found, torch.dtype):
            found = str(found).removeprefix("torch.")
        if last == "rope_scaling" and value is not None:
            found = {k: v for k, v in found.items() if k in value}
        assert found == value, path


# --- defaults ---------------------------------------------------------------------------------------------


@NAMES
def test_defaults_are_the_references_but_for_what_is_listed(name: str) -> None:
    mine, reference = getattr(vitrail, name)().to_dict(), getattr(transformers, name)().to_dict()
    there = flat(reference)
    found = {
        path: (there.get(path, ABSENT), value)
        for path, value in flat(mine).items()
        if there.get(path, ABSENT) != value and not (value is None and path not in there)
    }
    assert found == {d.path: (d.theirs, d.ours) for d in DEFAULT_VALUES if d.config == name}


def test_the_list_of_default_values_is_exact() -> None:
    assert all(len(d.reason) > 20 and d.theirs != d.ours for d in DEFAULT_VALUES)
    assert {d.config for d in DEFAULT_VALUES} <= set(SETTINGS)
    assert len({(d.config, d.path) for d in DEFAULT_VALUES}) == len(DEFAULT_VALUES)


# --- round trips of our own -------------------------------------------------------------------------------


@NAMES
def test_dict_json_and_folder(name: str, tmp_path: Path) -> None:
    kind = getattr(vitrail, name)
    config = ours(name, a_key_of_tomorrow={"deep": [1, None]}, output_attentions=True, dtype=torch.bfloat16)
    config.to_json_file(tmp_path / "one.json")
    config.save_pretrained(tmp_path / "folder")
    again = [
        kind.from_dict(config.to_dict()),
        kind.from_dict(json.loads(config.to_json_string())),
        kind.from_json_file(tmp_path / "one.json"),
        kind.from_pretrained(tmp_path / "folder"),
        kind.from_pretrained(tmp_path / "folder" / "config.json"),
        vitrail.AutoConfig.from_pretrained(tmp_path / "folder"),
    ]
    for copy in again:
        assert type(copy) is kind
        assert copy.to_dict() == config.to_dict()
        assert copy == config
        assert copy.a_key_of_tomorrow == {"deep": [1, None]}
        assert copy.output_attentions is True and copy.to_dict()["dtype"] == "bfloat16"
    assert config != ours(name)


@NAMES
def test_keywords_override_what_is_read(name: str, tmp_path: Path) -> None:
    kind = getattr(vitrail, name)
    ours(name).save_pretrained(tmp_path)
    changed = kind.from_pretrained(tmp_path, return_dict=False, initializer_range=0.5)
    assert changed.return_dict is False and changed.initializer_range == 0.5
    assert kind.from_dict(ours(name).to_dict(), return_dict=False).use_return_dict is False


def test_attributes_can_be_changed_and_are_saved(tmp_path: Path) -> None:
    config = ours("Mistral3Config")
    config.image_token_id = 12
    config.text_config.vocab_size = 99
    config.torch_dtype = "float16"
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written["image_token_index"] == config.image_token_index == 12
    assert written["text_config"]["vocab_size"] == 99 and written["dtype"] == "float16"
    assert vitrail.Mistral3Config.from_pretrained(tmp_path) == config


def test_parts_as_objects_or_dicts() -> None:
    """The document's form, by place; and a dict in its stead."""
    vision = vitrail.PixtralVisionConfig(**VISION)
    text = vitrail.MistralConfig(**TEXT)
    for name in ("Mistral3Config", "LlavaConfig"):
        kind = getattr(vitrail, name)
        config = kind(vision, text)
        assert config.vision_config is vision and config.text_config is text
        assert kind(VISION, TEXT) == config
        assert config.get_text_config() is text


def test_a_part_can_be_read_from_the_whole(tmp_path: Path) -> None:
    config = ours("Mistral3Config")
    config.save_pretrained(tmp_path)
    assert vitrail.PixtralVisionConfig.from_pretrained(tmp_path) == config.vision_config
    assert vitrail.MistralConfig.from_pretrained(tmp_path) == config.text_config


# --- with transformers ------------------------------------------------------------------------------------


@NAMES
def test_transformers_reads_what_vitrail_writes(name: str, tmp_path: Path) -> None:
    config = ours(name, architectures=["One"], dtype="bfloat16", bos_token_id=3)
    config.save_pretrained(tmp_path)
    reference = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(reference).__name__ == name
    assert_agrees(config, reference)
    assert reference.dtype == torch.bfloat16


@NAMES
def test_vitrail_reads_what_transformers_writes(name: str, tmp_path: Path) -> None:
    reference = theirs(name, architectures=["One"], dtype=torch.float16, bos_token_id=3)
    reference.save_pretrained(tmp_path)
    config = vitrail.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is getattr(vitrail, name)
    # The reference writes no value that is its default, and these defaults are listed as different.
    defaults = flat(json.loads((tmp_path / "config.json").read_text("utf-8")))
    left_out = {d.path for d in DEFAULT_VALUES if d.config == name and d.path not in defaults}
    assert left_out <= {"tie_word_embeddings"}
    assert_agrees(config, reference, frozenset(left_out))
    for key in SETTINGS[name]:
        assert key in config.to_dict()
    config.save_pretrained(tmp_path / "again")
    assert_agrees(config, transformers.AutoConfig.from_pretrained(tmp_path / "again"))


def test_what_transformers_calls_gelu_in_a_file_is_silu(tmp_path: Path) -> None:
    """Published files say so and mean SiLU; a configuration made in Python means what it says, also when read back."""
    transformers.PixtralVisionConfig().save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read = vitrail.PixtralVisionConfig.from_pretrained(tmp_path / "theirs")
    assert read.hidden_act == "silu"
    assert sum("gelu" in str(warning.message) for warning in seen) <= 1
    meant = vitrail.PixtralVisionConfig(hidden_act="gelu")
    meant.save_pretrained(tmp_path / "ours")
    assert vitrail.PixtralVisionConfig.from_pretrained(tmp_path / "ours").hidden_act == "gelu"
    assert transformers.PixtralVisionConfig.from_pretrained(tmp_path / "ours").hidden_act == "gelu"
