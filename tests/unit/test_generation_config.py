"""GenerationConfig: its file, its defaults, and what transformers makes of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import tiny
from vitrail.configs.generation import GenerationConfig
from vitrail.errors import CheckpointError, ConfigError, InputError, UnsupportedError


def test_every_option_of_transformers_can_be_read_and_has_its_default():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig().to_dict()
    ours = GenerationConfig()
    for name, value in theirs.items():
        if name not in ("transformers_version", "_from_model_config"):
            assert getattr(ours, name) == value, name
    assert set(ours.to_dict()) - set(theirs) == {"seed", "cache_dtype"}  # Vitrail's own


def test_a_folder_round_trip_keeps_unknown_keys(tmp_path):
    held = {
        "temperature": 0.15,
        "do_sample": True,
        "eos_token_id": [2, 3],
        "vendor": {"x": 1},
        "max_length": 262144,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(held))
    config = GenerationConfig.from_pretrained(tmp_path, top_p=0.5)
    assert config.vendor == {"x": 1}
    assert config.eos_token_ids == (2, 3)
    config.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text()) == held | {"top_p": 0.5}
    assert GenerationConfig.from_pretrained(tmp_path / "copy") == config
    first = (tmp_path / "copy" / "generation_config.json").read_bytes()
    GenerationConfig.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "generation_config.json").read_bytes() == first


def test_transformers_reads_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    GenerationConfig(temperature=0.15, do_sample=True, eos_token_id=[2, 3], max_new_tokens=7).save_pretrained(
        tmp_path
    )
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.temperature, theirs.do_sample, theirs.eos_token_id, theirs.max_new_tokens) == (
        0.15,
        True,
        [2, 3],
        7,
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert ours.to_diff_dict().keys() - {"transformers_version"} == {
        "temperature",
        "do_sample",
        "eos_token_id",
        "max_new_tokens",
    }


def test_without_its_file_the_special_ids_of_config_json_are_used(tmp_path):
    data = tiny.config_dict("llava")
    data["text_config"] |= {"bos_token_id": 5, "eos_token_id": 6}
    data["pad_token_id"] = 7
    (tmp_path / "config.json").write_text(json.dumps(data))
    config = GenerationConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 7)
    with pytest.raises(CheckpointError, match=r"other\.json"):
        GenerationConfig.from_pretrained(tmp_path, "other.json")
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_file_may_ask_for_what_is_refused_only_when_it_is_used():
    config = GenerationConfig.from_dict({"num_beams": 4, "length_penalty": 2.0})
    assert config.num_beams == 4
    with pytest.raises(UnsupportedError, match="num_beams=4"):
        config.refuse_unsupported()
    GenerationConfig(length_penalty=2.0, cache_implementation="static").refuse_unsupported()
    with pytest.raises(UnsupportedError, match=r"cache_implementation='quantized'.*; cache_dtype='int8'"):
        GenerationConfig(cache_implementation="quantized").refuse_unsupported()


def test_update_sets_all_or_nothing():
    config = GenerationConfig()
    assert config.update(temperature=0.5, nonsense=1) == {"nonsense": 1}
    assert config.temperature == 0.5
    with pytest.raises(ConfigError, match="top_p"):
        config.update(temperature=0.7, top_p=2.0)
    assert (config.temperature, config.top_p) == (0.5, 1.0)


def test_unknown_arguments_are_named():
    with pytest.raises(InputError, match="'max_new_token'; did you mean max_new_tokens"):
        GenerationConfig(max_new_token=4)
    with pytest.raises(ConfigError, match="object of keys"):
        GenerationConfig.from_dict([1])
    with pytest.raises(UnsupportedError, match="push_to_hub"):
        GenerationConfig().save_pretrained("somewhere", push_to_hub=True)


def test_a_default_is_nobody_elses_list():
    first = GenerationConfig.from_dict({"eos_token_id": (held := [1, 2])})
    held.append(3)
    assert first.eos_token_ids == (1, 2)


def test_the_precision_of_the_cache_is_kept_by_name(tmp_path: Path) -> None:
    config = GenerationConfig(cache_dtype=torch.bfloat16)
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).cache_dtype == "bfloat16"
    assert json.loads((tmp_path / "generation_config.json").read_text())["cache_dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match=r"cache_dtype must be one of float32.*int8, got 'int4'"):
        config.update(cache_dtype="int4")
    assert config.cache_dtype == "bfloat16"


def test_keys_of_transformers_5_in_a_file(tmp_path):
    """null means "not set"; what would change the text is refused when it is used, and all are written back."""
    data = {
        "do_sample": None,
        "max_length": None,
        "use_cache": None,
        "top_h": 0.4,
        "compile_config": {"a": 1},
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(data))
    config = GenerationConfig.from_pretrained(tmp_path)
    assert (config.do_sample, config.max_length, config.use_cache) == (False, 20, True)
    with pytest.raises(UnsupportedError, match=r"top_h=0\.4"):
        config.refuse_unsupported()
    assert config.to_diff_dict() == {"top_h": 0.4, "compile_config": {"a": 1}}
    config.top_h = None
    config.refuse_unsupported()


def test_options_with_tuples_as_keys_are_shown(tmp_path):
    config = GenerationConfig(sequence_bias={(1, 2): 2.0})
    assert "(1, 2)" in repr(config) and "(1, 2)" in config.to_json_string()
    with pytest.raises(UnsupportedError, match="sequence_bias"):
        config.refuse_unsupported()


@pytest.mark.parametrize("name", ["__class__", "to_dict", "validate", "from_pretrained"])
def test_key_that_would_hide_a_method_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({name: 3}))
    with pytest.raises(ConfigError, match=f"'{name}' cannot be a key"):
        GenerationConfig.from_pretrained(tmp_path)
    config = GenerationConfig()
    assert config.update(**{name: 3}) == {name: 3}
    assert config.to_dict() == GenerationConfig().to_dict()
