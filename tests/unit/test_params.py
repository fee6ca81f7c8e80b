"""params.json: every published file's keys, the published names and shapes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import geometries
from vitrail.configs.params import config_from_params, read_params
from vitrail.configs.params_writer import params_from_config
from vitrail.errors import CheckpointError, ConfigError, UnsupportedError
from vitrail.weights.mistral_names import from_native, to_native
from vitrail.weights.names import canonical


@pytest.mark.parametrize("name", geometries.PUBLISHED)
def test_names_and_shapes_of_a_published_model(name: str) -> None:
    """On the meta device: as many parameters as published, and the published spelling of every tensor."""
    params = geometries.PUBLISHED[name]
    config = geometries.config_of(params)
    with torch.device("meta"):
        model = vitrail.AutoModelForImageTextToText.from_config(config)
    assert model.num_parameters() == geometries.COUNTS[name]
    shapes = {}
    for own, tensor in model.state_dict().items():
        native = to_native(canonical(own))
        assert native == geometries.native_name(own)
        assert from_native(native) == canonical(own)
        shapes[native] = tuple(tensor.shape)
    layer, tower = f"layers.{params['n_layers'] - 1}.", params["vision_encoder"]
    assert shapes["tok_embeddings.weight"] == (params["vocab_size"], params["dim"])
    assert shapes[layer + "attention.wq.weight"] == (params["n_heads"] * 128, params["dim"])
    assert shapes[layer + "attention.wk.weight"] == (8 * 128, params["dim"])
    assert shapes[layer + "feed_forward.w2.weight"] == (params["dim"], params["hidden_dim"])
    side, width = tower["patch_size"], tower["hidden_size"]
    assert shapes["vision_encoder.patch_conv.weight"] == (width, 3, side, side)
    assert shapes["vision_language_adapter.w_in.weight"] == (params["dim"], width)
    assert ("vision_language_adapter.w_in.bias" in shapes) == (name == "Pixtral 12B")
    merger = shapes.get("patch_merger.merging_layer.weight")
    assert merger == (None if name.startswith("Pixtral") else (1024, 4096))
    assert ("pre_mm_projector_norm.weight" in shapes) == (merger is not None)


@pytest.mark.parametrize("name", geometries.PUBLISHED)
def test_params_come_back(name: str) -> None:
    """What a published file says is said again; defaults are spelled out."""
    given = {key: value for key, value in geometries.PUBLISHED[name].items() if value is not None}
    written = params_from_config(geometries.config_of(given))
    tower = given.pop("vision_encoder")
    assert {key: written["vision_encoder"][key] for key in tower} == tower
    assert {key: written[key] for key in given} == given
    assert params_from_config(geometries.config_of(written)) == written


def test_defaults_of_the_first_release() -> None:
    config = geometries.config_of(
        {**geometries.PUBLISHED["Pixtral 12B"], "rope_theta": None, "anything": [1]}
    )
    assert isinstance(config, vitrail.LlavaConfig)
    assert config.multimodal_projector_bias is True
    assert (config.image_token_index, config.vision_feature_layer) == (10, -1)
    text = config.text_config
    assert (text.rope_theta, text.max_position_embeddings, text.sliding_window) == (1e6, 128000, None)
    assert config.vision_config.head_dim == 64
    assert not hasattr(config, "image_break_token_id")


def test_yarn_without_scale_multiplies_by_one() -> None:
    params = geometries.small("Ministral 3 3B")
    rope = geometries.config_of(params).text_config.rope_parameters
    assert rope["mscale"] == rope["mscale_all_dim"] == 1.0
    assert (rope["factor"], rope["beta_fast"], rope["beta_slow"], rope["llama_4_scaling_beta"]) == (
        16,
        32,
        1,
        0.1,
    )
    params["yarn"]["apply_scale"] = True
    assert "mscale" not in geometries.config_of(params).text_config.rope_parameters


def test_text_without_a_tower() -> None:
    params = geometries.small("Small 3.1") | {"vision_encoder": None, "_sliding_window": [64, 64]}
    config = geometries.config_of(params)
    assert type(config) is vitrail.MistralConfig
    assert config.sliding_window == 64


def change(**changes: Any) -> dict[str, Any]:
    params = geometries.small("Ministral 3 8B")
    tower = changes.pop("tower", {})
    return {**params, "vision_encoder": {**params["vision_encoder"], **tower}, **changes}


@pytest.mark.parametrize(
    ("params", "kind", "words"),
    [
        (change(dim=None), ConfigError, "params.json has no dim"),
        (change(dim="64"), ConfigError, "dim must be int, got '64'"),
        (change(n_layers=0), ConfigError, "n_layers must be at least 1"),
        (change(norm_eps=float("inf")), ConfigError, "norm_eps must be finite"),
        (change(rope_theta=True), ConfigError, "rope_theta must be"),
        (change(tied_embeddings="no"), ConfigError, "tied_embeddings must be bool"),
        (change(yarn=16), ConfigError, "yarn must be an object"),
        (change(yarn={"factor": 2}), ConfigError, "original_max_position_embeddings"),
        (change(vision_encoder=[]), ConfigError, "vision_encoder must be an object"),
        (change(tower={"patch_size": None}), ConfigError, "vision_encoder has no patch_size"),
        (change(tower={"image_end_token_id": -2}), ConfigError, "image_end_token_id must be at least -1"),
        (change(tower={"image_end_token_id": -1}), ConfigError, "no tokenizer beside it"),
        (change(tower={"mm_projector_id": "other"}), UnsupportedError, "'other'"),
        (change(tower={"add_pre_mm_projector_layer_norm": False}), UnsupportedError, "norm False"),
        (change(moe={"num_experts": 8}), UnsupportedError, "moe"),
        (change(sliding_window=[None, 4]), UnsupportedError, "sliding_window differs"),
        (change(yarn=None), UnsupportedError, "without yarn"),
        (
            change(llama_4_scaling={"original_max_position_embeddings": 4, "beta": 0.1}),
            UnsupportedError,
            "different original",
        ),
    ],
)
def test_what_cannot_be_read_is_named(params: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        config_from_params(params, "params.json")


def test_ids_of_minus_one_are_the_tokenizer_s(tmp_path: Path) -> None:
    params = change(tower={"image_token_id": -1, "image_break_token_id": -1, "image_end_token_id": -1})
    (tmp_path / "params.json").write_text(json.dumps(params))
    (tmp_path / "tekken.json").write_text(json.dumps({"config": {"default_vocab_size": 300}, "vocab": []}))
    config = read_params(tmp_path)
    assert (config["image_token_index"], config["image_break_token_id"], config["image_end_token_id"]) == (
        10,
        12,
        13,
    )
    other = [{"rank": 0, "token_str": "<unk>"}, {"rank": 7, "token_str": "[IMG]"}]
    (tmp_path / "tekken.json").write_text(
        json.dumps({"config": {"default_vocab_size": 300}, "special_tokens": other})
    )
    with pytest.raises(ConfigError, match=r"image_break_token_id is -1, and .* has no \[IMG_BREAK\]"):
        read_params(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"dim": NaN}'])
def test_a_params_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.json").write_text(text)
    with pytest.raises((CheckpointError, ConfigError)):
        vitrail.AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "layers.0",
        "layers.00.attention.wq.weight",
        "layers.1.attention.wq.qscale_weight",
        "layers.9999999.ffn_norm.weight",
        "vision_encoder.norm.weight",
        "norm.weight.norm",
    ],
)
def test_foreign_names_have_no_counterpart(name: str) -> None:
    assert from_native(name) is None
    assert to_native(name) is None
