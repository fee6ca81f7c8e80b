"""Writer of params.json, Mistral's own format, from a configuration (params.py reads it)."""

from __future__ import annotations

import json
from typing import Any

from vitrail.configs.base import PretrainedConfig
from vitrail.configs.text import MistralConfig
from vitrail.configs.vlm import Mistral3Config, VisionLanguageConfig
from vitrail.errors import UnsupportedError


def params_from_config(config: PretrainedConfig) -> dict[str, Any]:
    """Return the content of a params.json, in the published files' order.

    Raises:
        UnsupportedError: a value without a key in that format: another activation, feature layer or rotary scaling.
    """
    text = config.get_text_config()
    if not isinstance(text, MistralConfig):
        raise UnsupportedError(
            f"{type(config).__name__} has no params.json; a language model's was expected."
        )
    params: dict[str, Any] = {
        "dim": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "head_dim": text.head_dim,
        "hidden_dim": text.intermediate_size,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "rope_theta": text.rope_theta,
        "norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size,
        "tied_embeddings": text.tie_word_embeddings,
        "max_position_embeddings": text.max_position_embeddings,
    }
    _refuse(text.hidden_act != "silu", f"hidden_act {text.hidden_act!r}")
    if text.sliding_window is not None:
        params["sliding_window"] = text.sliding_window
    if text.rope_scaling is not None:
        params |= _scaling(text.rope_scaling)
    if isinstance(config, VisionLanguageConfig):
        params["vision_encoder"] = _vision(config)
    return params


def params_text(params: dict[str, Any]) -> str:
    """Return the text of the file: keys in order, four spaces, a newline at the end."""
    return json.dumps(params, indent=4, ensure_ascii=False) + "\n"


def _scaling(scaling: dict[str, Any]) -> dict[str, Any]:
    original = scaling.get("original_max_position_embeddings")
    _refuse(original is None, "rope_parameters without original_max_position_embeddings")
    _refuse(scaling.get("truncate") is False, "rope_parameters with truncate false")
    both = (scaling.get("mscale"), scaling.get("mscale_all_dim"))
    plain = scaling.get("attention_factor")
    applied = plain is None and not (both[0] and both[1])
    unit = plain == 1 if plain is not None else both[0] == both[1]
    _refuse(not applied and not unit, f"rope_parameters with mscale {both} and attention_factor {plain}")
    yarn = {
        "original_max_position_embeddings": original,
        "factor": scaling["factor"],
        "apply_scale": applied,
        "beta": 32.0 if scaling.get("beta_fast") is None else scaling["beta_fast"],
        "alpha": 1.0 if scaling.get("beta_slow") is None else scaling["beta_slow"],
    }
    beta = scaling.get("llama_4_scaling_beta")
    temperature = {"original_max_position_embeddings": original, "beta": beta}
    return {"yarn": yarn} if beta is None else {"llama_4_scaling": temperature, "yarn": yarn}


def _vision(config: VisionLanguageConfig) -> dict[str, Any]:
    tower = config.vision_config
    _refuse(tower.hidden_act != "silu", f"a tower with hidden_act {tower.hidden_act!r}")
    _refuse(config.projector_hidden_act != "gelu", f"projector_hidden_act {config.projector_hidden_act!r}")
    layer = config.vision_feature_layer
    _refuse(layer not in (-1, tower.num_hidden_layers), f"vision_feature_layer {layer}")
    _refuse(
        tower.head_dim * tower.num_attention_heads != tower.hidden_size,
        "a tower whose heads are not as wide together as it is",
    )
    vision: dict[str, Any] = {"image_token_id": config.image_token_id}
    for name in ("image_break_token_id", "image_end_token_id"):
        if hasattr(config, name):
            vision[name] = getattr(config, name)
    for name in ("intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "num_channels",
                 "image_size", "patch_size", "rope_theta"):  # fmt: skip
        vision[name] = getattr(tower, name)
    if isinstance(config, Mistral3Config):
        vision |= {
            "mm_projector_id": "patch_merge",
            "spatial_merge_size": config.spatial_merge_size,
            "max_image_size": tower.image_size,
            "add_pre_mm_projector_layer_norm": True,
        }
    return {**vision, "adapter_bias": config.multimodal_projector_bias}


def _refuse(asked: bool, what: str) -> None:
    if asked:
        raise UnsupportedError(f"params.json cannot say {what}; this model stays in Hugging Face's format.")
