"""params.json, the configuration in Mistral's own format, read as the dict of a config.json (params_writer.py writes).

Source of keys and defaults: mistral-inference's reader and the published files; unknown keys and null are ignored,
since the files carry the keys of other architectures as null.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vitrail.arguments import short
from vitrail.configs.fields import check_field
from vitrail.errors import CheckpointError, ConfigError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.layout import CONFIG_NAME, MISTRAL, PARAMS_NAME

POSITIONS = 128_000  # default of an absent key
THETA = 1e6  # likewise, of the decoder
VISION_THETA = 1e4
IMAGE_TOKEN = 10
# Other architectures' keys: a value other than null changes the tensors or the mathematics.
_FOREIGN = ("moe", "q_lora_rank", "kv_lora_rank", "kv_sharing", "nope", "softmax_tanh_gating")
_IMAGE_IDS = {
    "image_token_id": "[IMG]",
    "image_break_token_id": "[IMG_BREAK]",
    "image_end_token_id": "[IMG_END]",
}


def read_params(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the params.json of a checkpoint's folder as the dict of a config.json.

    Returns:
        The dict; model_type is llava or mistral3 with a vision_encoder, else mistral or ministral3. Break and end ids
        are kept as image_break_token_id and image_end_token_id; ids of −1 are looked up in the folder's tokenizer.

    Raises:
        CheckpointError: a file that is missing or not JSON.
        ConfigError: a missing or ill-typed key.
        UnsupportedError: a key of another architecture.
    """
    opened = CheckpointFolder.at(folder)
    path = opened.path / PARAMS_NAME
    if PARAMS_NAME not in opened.files:
        raise CheckpointError(f"{path} cannot be read: there is no such file.")
    return config_from_params(opened.json(PARAMS_NAME), str(path), opened)


def has_params(folder: CheckpointFolder) -> bool:
    """Return whether the folder's configuration is a params.json."""
    return folder.layout == MISTRAL and PARAMS_NAME in folder.files


def config_dict_of(folder: CheckpointFolder) -> dict[str, Any]:
    """Return the dict of a folder's config.json as read, or of its params.json; {} without either."""
    return read_params(folder) if has_params(folder) else folder.json(CONFIG_NAME)


def config_from_params(
    params: Mapping[str, Any], where: str, folder: CheckpointFolder | None = None
) -> dict[str, Any]:
    """Return the dict of a config.json for the content of a params.json; `where` names it in errors."""
    given = _Given(params, where)
    for name in _FOREIGN:
        if given.optional(name):
            raise UnsupportedError(f"{where}: {name} is set; that is of an architecture outside this family.")
    text = _text(given)
    quantization = _quantization(given)
    vision = given.optional("vision_encoder")
    if vision is None:
        return {**text, **quantization}
    if not isinstance(vision, Mapping):
        raise ConfigError(f"{where}: vision_encoder must be an object of keys, got {short(vision)}.")
    return {**_vision_language(_Given(vision, f"{where}: vision_encoder"), text, folder), **quantization}


class _Given:
    """The keys of one object; null counts as absent."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._values = {name: value for name, value in values.items() if value is not None}

    def whole(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self._values.get(name, default)
        if value is None:
            raise ConfigError(f"{self.where} has no {name}; a whole number was expected.")
        check_field(self.where, name, value, int, minimum=minimum)
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        value = self._values.get(name, default)
        if value is None:
            raise ConfigError(f"{self.where} has no {name}; a number was expected.")
        check_field(self.where, name, value, (int, float), minimum=0)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        check_field(self.where, name, value, bool)
        return bool(value)

    def text(self, name: str, default: str) -> str:
        value = self._values.get(name, default)
        check_field(self.where, name, value, str)
        return str(value)

    def section(self, name: str) -> _Given | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.where}: {name} must be an object of keys, got {short(value)}.")
        return _Given(value, f"{self.where}: {name}")

    def optional(self, name: str) -> Any:
        return self._values.get(name)


def _text(given: _Given) -> dict[str, Any]:
    theta = given.number("rope_theta", THETA)
    text: dict[str, Any] = {
        "model_type": "mistral",
        "vocab_size": given.whole("vocab_size"),
        "hidden_size": given.whole("dim"),
        "intermediate_size": given.whole("hidden_dim"),
        "num_hidden_layers": given.whole("n_layers"),
        "num_attention_heads": given.whole("n_heads"),
        "num_key_value_heads": given.whole("n_kv_heads"),
        "head_dim": given.whole("head_dim", minimum=2),
        "rms_norm_eps": given.number("norm_eps"),
        "max_position_embeddings": given.whole("max_position_embeddings", POSITIONS),
        "sliding_window": _sliding_window(given),
        "tie_word_embeddings": given.flag("tied_embeddings", False),
        "rope_theta": theta,
    }
    scaling = _scaling(given)
    if scaling is None:
        return text
    del text["rope_theta"]
    return {**text, "model_type": "ministral3", "rope_parameters": {"rope_theta": theta, **scaling}}


def _scaling(given: _Given) -> dict[str, Any] | None:
    """Return YaRN and the query temperature under the keys of rope_parameters; None for plain RoPE."""
    yarn, temperature = given.section("yarn"), given.section("llama_4_scaling")
    if yarn is None and temperature is None:
        return None
    if yarn is None:
        raise UnsupportedError(f"{given.where}: llama_4_scaling without yarn is not supported.")
    original = yarn.whole("original_max_position_embeddings")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": yarn.number("factor"),
        "original_max_position_embeddings": original,
        "beta_fast": yarn.number("beta", 32.0),
        "beta_slow": yarn.number("alpha", 1.0),
    }
    if not yarn.flag("apply_scale", False):
        # Their ratio is the factor on cos and sin: exactly 1, for "not applied".
        scaling |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    if temperature is not None:
        if temperature.whole("original_max_position_embeddings", original) != original:
            raise UnsupportedError(
                f"{given.where}: yarn and llama_4_scaling have different original_max_position_embeddings."
            )
        scaling["llama_4_scaling_beta"] = temperature.number("beta")
    return scaling


def _sliding_window(given: _Given) -> int | None:
    value = given.optional("sliding_window")
    value = given.optional("_sliding_window") if value is None else value
    widths = value if isinstance(value, list) else [value]
    if any(width != widths[0] for width in widths):
        raise UnsupportedError(
            f"{given.where}: sliding_window differs from layer to layer, which no model of this family does."
        )
    width = widths[0] if widths else None
    check_field(given.where, "sliding_window", width, (int, type(None)), minimum=1)
    return width


def _quantization(given: _Given) -> dict[str, Any]:
    """Return a quantised checkpoint's format as config.json spells it, so that one reader serves or refuses both."""
    section = given.section("quantization")
    if section is None:
        return {}
    weights = section.text("qformat_weight", "unknown")
    method = "fp8" if weights.startswith("fp8") else weights
    static = str(section.optional("qscheme_act")).upper() == "TENSOR"
    return {
        "quantization_config": {
            "quant_method": method,
            "activation_scheme": "static" if static else "dynamic",
            "weight_block_size": None,
        }
    }


def _vision_language(given: _Given, text: dict[str, Any], folder: CheckpointFolder | None) -> dict[str, Any]:
    given.whole("max_image_size", 1)
    heads = given.whole("num_attention_heads")
    width = given.whole("hidden_size")
    vision = {
        "model_type": "pixtral",
        "hidden_size": width,
        "intermediate_size": given.whole("intermediate_size"),
        "num_hidden_layers": given.whole("num_hidden_layers"),
        "num_attention_heads": heads,
        "head_dim": width // heads,
        "num_channels": given.whole("num_channels"),
        "image_size": given.whole("image_size"),
        "patch_size": given.whole("patch_size"),
        "rope_theta": given.number("rope_theta", VISION_THETA),
        "hidden_act": "silu",
    }
    whole = {
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -1,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": given.flag("adapter_bias", True),
        "tie_word_embeddings": text["tie_word_embeddings"],
        **_image_ids(given, folder),
    }
    merge = given.whole("spatial_merge_size", 1)
    merger, norm = given.text("mm_projector_id", ""), given.flag("add_pre_mm_projector_layer_norm", False)
    if merger == "patch_merge" and norm:
        return {"model_type": "mistral3", "spatial_merge_size": merge, **whole}
    if merger == "" and not norm and merge == 1:
        return {
            "model_type": "llava",
            "image_seq_length": 1,
            "vision_feature_select_strategy": "full",
            **whole,
        }
    raise UnsupportedError(
        f"{given.where}: mm_projector_id {short(merger)} with spatial_merge_size {merge} and "
        f"add_pre_mm_projector_layer_norm {norm} is not supported; the family has 'patch_merge' with the norm, and "
        "neither with a merge of 1."
    )


def _image_ids(given: _Given, folder: CheckpointFolder | None) -> dict[str, int]:
    """Return the ids of image tokens by their name in config.json; absent break and end ids stay absent."""
    ids = {"image_token_id": IMAGE_TOKEN}
    for name in _IMAGE_IDS:
        if given.optional(name) is not None:
            ids[name] = given.whole(name, minimum=-1)
    unknown = [name for name, value in ids.items() if value < 0]
    if unknown:
        file = None if folder is None else folder.tokenizer_file()
        if folder is None or file is None:
            raise ConfigError(
                f"{given.where}: {', '.join(unknown)} of -1 means the tokenizer's, and there is no tokenizer beside it."
            )
        found = folder.token_ids(file)
        for name in unknown:
            if _IMAGE_IDS[name] not in found.controls:
                raise ConfigError(
                    f"{given.where}: {name} is -1, and {file} has no {_IMAGE_IDS[name]} to take."
                )
            ids[name] = found.controls[_IMAGE_IDS[name]]
    ids["image_token_index"] = ids.pop("image_token_id")
    return ids
