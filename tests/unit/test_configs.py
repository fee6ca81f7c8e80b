"""Configurations: defaults, the spellings of published files, round trips through dict, JSON and folder."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import vitrail
from tests import tiny
from vitrail.configs import read_config

PIXTRAL_12B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_seq_length": 1,
    "image_token_index": 10, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "text_config": {
        "model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "intermediate_size": 14336,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "max_position_embeddings": 1024000, "rms_norm_eps": 1e-5,
        "rope_theta": 1e9, "sliding_window": None, "vocab_size": 131072,
    },
    "vision_config": {
        "model_type": "pixtral", "head_dim": 64, "hidden_act": "silu", "image_size": 1024, "patch_size": 16,
        "rope_theta": 10000.0,
    },
}  # fmt: skip
SMALL_3: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 10,
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "vision_feature_layer": -1, "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "mistral", "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "intermediate_size": 32768, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e9,
        "sliding_window": None, "vocab_size": 131072,
    },
    "vision_config": {
        "model_type": "pixtral", "head_dim": 64, "hidden_act": "silu", "hidden_size": 1024, "image_size": 1540,
        "intermediate_size": 4096, "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24,
        "patch_size": 14, "rope_theta": 10000.0,
    },
}  # fmt: skip


def read(folder: Path, data: dict[str, Any]) -> Any:
    """The configuration of a config.json with these keys; a warning is an error."""
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_config(folder)


def with_text(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    changed["text_config"] |= changes
    return changed


def with_vision(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    changed["vision_config"] |= changes
    return changed


# --- defaults ----------------------------------------------------------------------------------------------------


def test_mistral3_alone_is_the_24b(tmp_path: Path) -> None:
    config = vitrail.Mistral3Config()
    written = read(tmp_path, SMALL_3)
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "vocab_size", "rms_norm_eps", "rope_theta", "sliding_window",
                 "max_position_embeddings"):  # fmt: skip
        assert getattr(config.text_config, name) == getattr(written.text_config, name), name
    assert config.vision_config == written.vision_config
    assert (config.image_token_index, config.spatial_merge_size) == (10, 2)


# What differs from transformers' defaults on purpose: the tower is always SiLU.
DIFFERENT = {"PixtralVisionConfig": {"hidden_act": "silu"}}
NOT_HERE = {"head_dim"}  # resolved when a configuration is made


@pytest.mark.parametrize("name", ["PixtralVisionConfig", "MistralConfig"])
def test_defaults_are_those_of_transformers(name: str) -> None:
    ours, theirs = getattr(vitrail, name)(), getattr(transformers, name)()
    mine = vars(ours)
    compared = {key for key in theirs.to_dict() if key in mine} - NOT_HERE
    assert len(compared) > 10
    for key in compared:
        expected = DIFFERENT.get(name, {}).get(key, getattr(theirs, key))
        assert mine[key] == expected, key
    heads = ours.hidden_size // ours.num_attention_heads
    assert ours.head_dim == heads


# --- spellings of published files ----------------------------------------------------------------------------------


def test_pixtral_12b_as_published(tmp_path: Path) -> None:
    config = read(tmp_path, PIXTRAL_12B)
    assert isinstance(config, vitrail.LlavaConfig)
    assert config.text_config.num_attention_heads == 32
    assert config.multimodal_projector_bias is True
    assert config.vision_config.hidden_size == 1024
    assert config.vision_config.num_hidden_layers == 24
    assert config.text_config.head_dim * 32 != config.text_config.hidden_size


def test_keys_that_a_pixtral_file_leaves_out(tmp_path: Path) -> None:
    """Llava's class defaults are CLIP's: -2, "default", 32000."""
    data = {k: v for k, v in PIXTRAL_12B.items() if not k.startswith(("vision_feature", "image_token"))}
    config = read(tmp_path, data)
    assert config.image_token_index == config.image_token_id == 10
    assert config.vision_feature_layer == -1
    assert config.vision_feature_select_strategy == "full"
    made = vitrail.LlavaConfig()
    assert (made.image_token_index, made.vision_feature_layer) == (32000, -2)
    assert made.vision_feature_select_strategy == "default"


def test_norm_eps_of_pixtral_large(tmp_path: Path) -> None:
    data = with_text(PIXTRAL_12B, norm_eps=1e-5)
    del data["text_config"]["rms_norm_eps"]
    assert read(tmp_path, data).text_config.rms_norm_eps == 1e-5


def test_image_token_id_is_image_token_index(tmp_path: Path) -> None:
    data = {**SMALL_3, "image_token_id": 11}
    del data["image_token_index"]
    config = read(tmp_path, data)
    assert config.image_token_index == config.image_token_id == 11
    config.image_token_id = 12
    assert config.image_token_index == 12
    assert vitrail.Mistral3Config(image_token_id=7).image_token_index == 7
    assert "image_token_id" not in config.to_dict()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_both_names_of_the_type(key: str, tmp_path: Path) -> None:
    data = {k: v for k, v in SMALL_3.items() if k != "torch_dtype"}
    config = read(tmp_path, {**data, key: "bfloat16"})
    assert config.dtype is config.torch_dtype is torch.bfloat16
    config.torch_dtype = torch.float16
    assert config.dtype is torch.float16
    config.dtype = "torch.float32"
    assert config.torch_dtype is torch.float32
    assert config.to_dict()["dtype"] == "float32"


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": None},
    ],
)
def test_spellings_of_the_plain_rotation(spelling: dict[str, Any], tmp_path: Path) -> None:
    data = with_text(SMALL_3, **spelling)
    if "rope_theta" not in spelling:
        del data["text_config"]["rope_theta"]
    text = read(tmp_path, data).text_config
    assert (text.rope_theta, text.rope_scaling) == (5e5, None)


@pytest.mark.parametrize(
    "kind", [{"rope_type": "yarn"}, {"type": "yarn"}, {"rope_type": "yarn", "type": "yarn"}]
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_spellings_of_yarn(key: str, kind: dict[str, str], tmp_path: Path) -> None:
    settings = {**kind, "factor": 16.0, "original_max_position_embeddings": 16384, "rope_theta": 1e6}
    text = read(tmp_path, with_text(SMALL_3, **{key: settings})).text_config
    assert text.rope_theta == 1e6
    assert text.rope_scaling == {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
    }


@pytest.mark.parametrize("kind", ["default", "axial"])
def test_rotation_of_the_tower_by_transformers_5(kind: str, tmp_path: Path) -> None:
    data = with_vision(SMALL_3, rope_parameters={"rope_theta": 2e4, "rope_type": kind})
    del data["vision_config"]["rope_theta"]
    assert read(tmp_path, data).vision_config.rope_theta == 2e4


def test_patch_size_as_height_and_width(tmp_path: Path) -> None:
    config = read(tmp_path, with_vision(SMALL_3, patch_size={"height": 14, "width": 14}))
    assert config.vision_config.patch_size == 14


@pytest.mark.parametrize("data", [PIXTRAL_12B, SMALL_3], ids=["llava", "mistral3"])
def test_gelu_in_a_file_is_silu_with_one_warning(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(with_vision(data, hidden_act="gelu")))
    outer = vitrail.LlavaConfig if data["model_type"] == "llava" else vitrail.Mistral3Config
    for cls in (outer, vitrail.AutoConfig, vitrail.PixtralVisionConfig):
        with pytest.warns(UserWarning, match="every published tower uses SiLU") as told:
            config = cls.from_pretrained(tmp_path)
        assert len(told) == 1
        assert getattr(config, "vision_config", config).hidden_act == "silu"


def test_gelu_in_python_is_obeyed_and_survives_a_folder(tmp_path: Path) -> None:
    config = vitrail.Mistral3Config(vision_config={"hidden_act": "gelu"})
    assert config.vision_config.hidden_act == "gelu"
    config.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_config(tmp_path).vision_config.hidden_act == "gelu"


def test_ministral_3_as_published(tmp_path: Path) -> None:
    settings = {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1e6, "rope_type": "yarn",
        "type": "yarn",
    }  # fmt: skip
    quantised = {"quant_method": "fp8", "activation_scheme": "static"}
    data = with_text(SMALL_3, model_type="ministral3", rope_parameters=settings, tie_word_embeddings=True)
    config = read(tmp_path, {**data, "quantization_config": quantised})
    assert type(config.text_config).__name__ == "Ministral3Config"
    assert config.text_config.tie_word_embeddings
    assert config.text_config.rope_parameters["llama_4_scaling_beta"] == 0.1
    assert config.quantization_config == quantised


# --- round trips -----------------------------------------------------------------------------------------------------

CONFIGS = {
    "pixtral": lambda: vitrail.PixtralVisionConfig(hidden_size=64, num_attention_heads=2, patch_size=7),
    "mistral": lambda: vitrail.MistralConfig(head_dim=24, eos_token_id=[2, 7], pad_token_id=11, bos_token_id=None),
    "yarn": lambda: vitrail.MistralConfig(rope_scaling={"type": "yarn", "factor": 4.0}, dtype=torch.bfloat16),
    "ministral3": lambda: tiny.config("ministral3"),
    "llava": lambda: tiny.config("llava", vision_feature_layer=[-1, 0], own_key={"a": [1, None]}),
    "llava-defaults": vitrail.LlavaConfig,
    "mistral3": lambda: tiny.config("mistral3", tie_word_embeddings=False, return_dict=False),
    "mistral3-defaults": vitrail.Mistral3Config,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_dict_json_file_and_folder(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    cls = type(config)
    plain = config.to_dict()
    assert json.loads(config.to_json_string()) == plain
    config.to_json_file(tmp_path / "one.json")
    config.save_pretrained(tmp_path / "new" / "folder")
    for again in (
        cls.from_dict(plain),
        cls.from_json_file(tmp_path / "one.json"),
        cls.from_pretrained(tmp_path / "new" / "folder"),
        cls.from_pretrained(tmp_path / "one.json"),
        read_config(tmp_path / "new" / "folder"),
        vitrail.AutoConfig.from_pretrained(tmp_path / "new" / "folder"),
        copy.deepcopy(config),
    ):
        assert type(again) is cls
        assert again == config
        assert again.to_json_string() == config.to_json_string()


@pytest.mark.parametrize("name", ["mistral", "yarn", "llava", "mistral3"])
def test_transformers_reads_what_is_written(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    config.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == type(config).__name__
    again = type(config).from_dict({k: v for k, v in theirs.to_dict().items() if k in config.to_dict()})
    mine, read_back = config.to_dict(), again.to_dict()
    for nested in ("text_config", "vision_config"):
        inner = mine.pop(nested, None)
        if inner is not None:
            assert {k: read_back[nested][k] for k in inner} == inner
        read_back.pop(nested, None)
    assert {k: read_back[k] for k in mine} == mine


@pytest.mark.parametrize("name", ["MistralConfig", "PixtralVisionConfig", "LlavaConfig", "Mistral3Config"])
def test_what_transformers_writes_is_read(name: str, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {}
    if name in ("LlavaConfig", "Mistral3Config"):
        kwargs = {
            "vision_config": transformers.PixtralVisionConfig(hidden_act="silu"),
            "text_config": transformers.MistralConfig(head_dim=128, sliding_window=None),
        }
    theirs = getattr(transformers, name)(**kwargs)
    theirs.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the class default of its tower is gelu
        ours = getattr(vitrail, name).from_pretrained(tmp_path)
    for key, value in theirs.to_diff_dict().items():
        if key not in (
            "text_config",
            "vision_config",
            "transformers_version",
            "hidden_act",
            "model_type",
            "head_dim",
        ):
            assert getattr(ours, key) == value, key


def test_keys_that_nobody_knows_are_kept(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        {**with_text(SMALL_3, layer_types=["full_attention"]), "is_encoder_decoder": False, "x": [1]},
    )
    assert config.x == [1]
    written = config.to_dict()
    assert written["x"] == [1]
    assert written["text_config"]["layer_types"] == ["full_attention"]


def test_keywords_override_a_file(tmp_path: Path) -> None:
    tiny.config("mistral3").save_pretrained(tmp_path)
    config = vitrail.Mistral3Config.from_pretrained(tmp_path, spatial_merge_size=1, return_dict=False)
    assert (config.spatial_merge_size, config.use_return_dict) == (1, False)


def test_a_part_of_a_larger_file(tmp_path: Path) -> None:
    whole = tiny.config("llava")
    whole.save_pretrained(tmp_path)
    assert vitrail.MistralConfig.from_pretrained(tmp_path) == whole.text_config
    assert vitrail.PixtralVisionConfig.from_pretrained(tmp_path) == whole.vision_config


def test_a_configuration_is_not_shared_with_what_it_was_made_from() -> None:
    text = tiny.config_dict("llava")["text_config"]
    config = vitrail.LlavaConfig(tiny.config_dict("llava")["vision_config"], text)
    config.text_config.vocab_size = 3
    assert text["vocab_size"] == 512
    assert config.get_text_config() is config.text_config
    with pytest.raises(AttributeError, match="LlavaConfig has no attribute 'nonsense'"):
        _ = config.nonsense


@pytest.mark.parametrize("wrong", ["auto", "torch", "float31", 32, ["bfloat16"], "nn"])
def test_dtype_that_names_no_type_is_refused(wrong: Any) -> None:
    with pytest.raises(vitrail.ConfigError, match="dtype must be a torch dtype or its name"):
        vitrail.MistralConfig(dtype=wrong)
    config = vitrail.MistralConfig()
    with pytest.raises(vitrail.ConfigError, match="dtype must be"):
        config.torch_dtype = wrong


def test_update_sets_keys_and_those_of_the_parts(tmp_path: Path) -> None:
    config = read(tmp_path, SMALL_3)
    text, vision, name = config.text_config, config.vision_config, config.name_or_path
    config.update({"spatial_merge_size": 3, "text_config": {"rms_norm_eps": 0.5}, "torch_dtype": "float16"})
    assert (config.spatial_merge_size, config.text_config.rms_norm_eps) == (3, 0.5)
    assert config.dtype is torch.float16 and config.name_or_path == name
    assert config.text_config is text and config.vision_config is vision  # the model's parts hold them
    before = config.to_dict()
    with pytest.raises(vitrail.ConfigError, match="spatial_merge_size"):
        config.update({"projector_hidden_act": "relu", "spatial_merge_size": 0})
    with pytest.raises(vitrail.ConfigError, match="object of keys"):
        config.update([("spatial_merge_size", 2)])  # type: ignore[arg-type]
    assert config.to_dict() == before
    other = vitrail.MistralConfig(vocab_size=7)
    config.update({"text_config": other})
    assert config.text_config is other and text.vocab_size != 7


@pytest.mark.parametrize("data", [SMALL_3, PIXTRAL_12B], ids=["small-3", "pixtral"])
def test_to_diff_dict_makes_the_same_configuration(data: dict[str, Any], tmp_path: Path) -> None:
    config = read(tmp_path, data)
    different = config.to_diff_dict()
    assert different["model_type"] == data["model_type"]
    assert len(different) < len(config.to_dict())
    changed = vitrail.MistralConfig(hidden_size=64, head_dim=16, another_key=1)
    assert changed.to_diff_dict() == {
        "model_type": "mistral",
        "hidden_size": 64,
        "head_dim": 16,
        "another_key": 1,
    }
    assert vitrail.MistralConfig.from_dict(changed.to_diff_dict()) == changed


def test_small_names_of_transformers(tmp_path: Path) -> None:
    """Iteration, sub_configs, get_config_dict and the common flags, as code around a model reads them."""
    config = read(tmp_path, SMALL_3)
    assert {"text_config", "vision_config", "spatial_merge_size"} <= set(config)
    assert set(config.sub_configs) == {"text_config", "vision_config"}
    assert config.is_encoder_decoder is config.is_decoder is config.add_cross_attention is False
    assert config.text_config.rope_parameters["rope_type"] == "default"
    assert "is_encoder_decoder" not in config.to_dict()
    keys, unused = vitrail.Mistral3Config.get_config_dict(tmp_path, revision="main", colour="red")
    assert keys["model_type"] == "mistral3" and unused == {"colour": "red"}
    with pytest.raises(vitrail.ConfigError, match="is_encoder_decoder"):
        vitrail.MistralConfig(is_encoder_decoder="no")
