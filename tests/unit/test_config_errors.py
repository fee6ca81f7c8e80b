"""A config.json that is wrong: ConfigError names the key; whatever is in the file, only a VitrailError comes out."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st

import vitrail
from tests import tiny
from vitrail.configs import read_config
from vitrail.errors import CheckpointError, ConfigError, VitrailError

FAMILIES = ["llava", "mistral3", "ministral3"]
MODELS = {
    "llava": "LlavaForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "mistral": "MistralForCausalLM",
    "ministral3": "MistralForCausalLM",
    "pixtral": "PixtralVisionModel",
}


def write(folder: Path, data: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def put(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`data` with the value at a dotted path replaced; ... deletes the key."""
    *parents, last = path.split(".")
    changed = copy.deepcopy(data)
    inner = changed
    for name in parents:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return changed


WRONG = [
    ("llava", "text_config", ...),
    ("llava", "vision_config", ...),
    ("llava", "vision_config", "pixtral"),
    ("mistral3", "text_config", []),
    ("llava", "text_config.model_type", "llama"),
    ("llava", "text_config.model_type", ["mistral"]),
    ("llava", "vision_config.model_type", "clip_vision_model"),
    ("llava", "text_config.hidden_size", "80"),
    ("llava", "text_config.hidden_size", 80.0),
    ("llava", "text_config.hidden_size", None),
    ("llava", "text_config.hidden_size", True),
    ("llava", "text_config.vocab_size", 0),
    ("llava", "text_config.num_hidden_layers", -3),
    ("llava", "text_config.num_attention_heads", 0),
    ("llava", "text_config.num_key_value_heads", 3),
    ("llava", "text_config.head_dim", 7),
    ("llava", "text_config.head_dim", "wide"),
    ("llava", "text_config.rms_norm_eps", "1e-5"),
    ("llava", "text_config.rms_norm_eps", float("nan")),
    ("llava", "text_config.hidden_act", 3),
    ("llava", "text_config.sliding_window", "4096"),
    ("llava", "text_config.sliding_window", 0),
    ("llava", "text_config.tie_word_embeddings", "no"),
    ("llava", "text_config.use_cache", 1),
    ("llava", "text_config.attention_dropout", 0.5),
    ("llava", "text_config.max_position_embeddings", "long"),
    ("llava", "text_config.eos_token_id", "</s>"),
    ("llava", "text_config.eos_token_id", [2, "x"]),
    ("llava", "text_config.bos_token_id", 1.5),
    ("llava", "text_config.pad_token_id", {}),
    ("llava", "text_config.rope_parameters", "yarn"),
    ("llava", "text_config.rope_parameters.rope_theta", -1),
    ("llava", "text_config.rope_parameters.rope_theta", float("inf")),
    ("llava", "text_config.rope_parameters.rope_type", "ntk"),
    ("llava", "text_config.rope_parameters.rope_type", ["yarn"]),
    ("ministral3", "text_config.rope_parameters.factor", ...),
    ("ministral3", "text_config.rope_parameters.factor", "16"),
    ("ministral3", "text_config.rope_parameters.factor", 0),
    ("ministral3", "text_config.rope_parameters.original_max_position_embeddings", "32"),
    ("ministral3", "text_config.rope_parameters.original_max_position_embeddings", ...),
    ("ministral3", "text_config.rope_parameters.llama_4_scaling_beta", "0.1"),
    ("ministral3", "text_config.rope_parameters.beta_fast", []),
    ("ministral3", "text_config.rope_parameters.mscale", "1"),
    ("llava", "vision_config.hidden_size", None),
    ("llava", "vision_config.head_dim", 6),
    ("llava", "vision_config.patch_size", {"height": 8, "width": 9}),
    ("llava", "vision_config.patch_size", {"height": "a", "width": "a"}),
    ("llava", "vision_config.patch_size", {}),
    ("llava", "vision_config.image_size", "96"),
    ("llava", "vision_config.num_channels", 0),
    ("llava", "vision_config.rope_parameters", {"rope_type": "yarn", "factor": 2}),
    ("llava", "image_token_index", "[IMG]"),
    ("llava", "image_token_index", -1),
    ("llava", "multimodal_projector_bias", "yes"),
    ("llava", "vision_feature_layer", "last"),
    ("llava", "vision_feature_layer", []),
    ("llava", "vision_feature_layer", [0, "x"]),
    ("llava", "vision_feature_layer", 9),
    ("llava", "vision_feature_select_strategy", "cls"),
    ("llava", "vision_feature_select_strategy", ["full"]),
    ("mistral3", "spatial_merge_size", 0),
    ("mistral3", "spatial_merge_size", "2"),
    ("mistral3", "dtype", 16),
    ("mistral3", "architectures", "Mistral3ForConditionalGeneration"),
    ("mistral3", "return_dict", None),
]


@pytest.mark.parametrize(("family", "path", "value"), WRONG, ids=[f"{f}-{p}-{v!r}" for f, p, v in WRONG])
def test_the_error_names_the_key(family: str, path: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, put(tiny.config_dict(family), path, value))
    key = path.rsplit(".", 1)[-1]
    named = "patch_size" if "patch" in key else key
    with pytest.raises(ConfigError, match=named):
        read_config(tmp_path)


@pytest.mark.parametrize("kind", ["llava_next", None, 3, ["llava"], "Mistral3"])
def test_a_model_type_that_nobody_knows(kind: Any, tmp_path: Path) -> None:
    write(tmp_path, {**tiny.config_dict("llava"), "model_type": kind})
    for read in (read_config, vitrail.AutoConfig.from_pretrained):
        with pytest.raises(ConfigError, match=r"model_type.*llava, mistral3"):
            read(tmp_path)


def test_no_model_type(tmp_path: Path) -> None:
    write(tmp_path, put(tiny.config_dict("llava"), "model_type", ...))
    with pytest.raises(ConfigError, match="no model_type"):
        read_config(tmp_path)


def test_the_wrong_class_for_a_file(tmp_path: Path) -> None:
    write(tmp_path, tiny.config_dict("llava"))
    with pytest.raises(ConfigError, match=r"Mistral3Config reads model_type 'mistral3'.*'llava'"):
        vitrail.Mistral3Config.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "key", ["to_dict", "use_return_dict", "from_pretrained", "__class__", "self", "attribute_map"]
)
@pytest.mark.parametrize("where", ["", "text_config.", "vision_config."])
def test_keys_that_would_replace_what_a_configuration_does(where: str, key: str, tmp_path: Path) -> None:
    write(tmp_path, put(tiny.config_dict("llava"), where + key, 1))
    with pytest.raises(ConfigError, match=key):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"model_type": }', "\x00\x01", '"llava"'])
def test_a_file_that_is_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(VitrailError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "path", ["text_config.hidden_act", "vision_config.hidden_act", "projector_hidden_act"]
)
def test_an_activation_that_nobody_has(path: str, tmp_path: Path) -> None:
    config = read_config(write(tmp_path, put(tiny.config_dict("llava"), path, "swish9")))
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match="'swish9' is not supported; one of silu, gelu"),
    ):
        vitrail.LlavaForConditionalGeneration(config)


def test_keywords_of_constructors_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="hidden_size"):
        vitrail.MistralConfig(hidden_size="4096")
    with pytest.raises(ConfigError, match="patch_size"):
        vitrail.PixtralVisionConfig(patch_size=0)
    with pytest.raises(ConfigError, match="text_config"):
        vitrail.Mistral3Config(text_config=3)
    with pytest.raises(ConfigError, match="expects an object"):
        vitrail.LlavaConfig.from_dict([1])
    with pytest.raises(ConfigError, match="file"):
        vitrail.LlavaConfig().save_pretrained(Path(__file__))


# --- whatever is in the file --------------------------------------------------------------------------------------

INNER = ["height", "width", "rope_type", "factor", "rope_theta", "model_type"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(
        ["", "gelu", "silu", "yarn", "default", "pixtral", "mistral", "full", "float32", "nope", "10"]
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(INNER), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
EXTRA = [
    "self", "cls", "args", "kwargs", "config_dict", "name_or_path", "_name_or_path", "rope_scaling", "rope_theta",
    "norm_eps", "image_token_id", "torch_dtype", "id2label", "quantization_config", "exact_hidden_act", "a b", "",
    "feature_layers", "rope_parameters", "head_dim", "vision_config", "text_config", "model_type", "_check", "layer_types",
]  # fmt: skip


def paths(data: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every place in a nested dict."""
    found = []
    for name, value in data.items():
        found.append((*before, name))
        if isinstance(value, dict):
            found += paths(value, (*before, name))
    return found


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A good configuration with one to three keys replaced, deleted or added."""
    data = tiny.config_dict(draw(st.sampled_from(FAMILIES)))
    data = draw(st.sampled_from([data, data, data["text_config"], data["vision_config"]]))
    for _ in range(draw(st.integers(1, 3))):
        places = paths(data)
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        inner = data
        for name in parents:
            inner = inner[name]
        match draw(st.integers(0, 3)):
            case 0:
                del inner[last]
            case 1:
                inner[draw(st.sampled_from(EXTRA))] = draw(JSON)
            case _:
                inner[last] = draw(JSON)
    return data


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutated())
@example(data={"model_type": "mistral", "bos_token_id": [], "hidden_size": 8})
def test_only_our_errors_come_out(data: dict[str, Any], tmp_path: Path) -> None:
    """Reading, writing and building on the meta device either work or raise a VitrailError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = read_config(write(tmp_path, data))
            again = type(config).from_dict(config.to_dict())
            with torch.device("meta"):
                getattr(vitrail, MODELS[config.model_type])(config)
        except VitrailError:
            return
    # repr, since NaN in a key that nobody reads is unequal to itself
    assert repr(again) == repr(config)
