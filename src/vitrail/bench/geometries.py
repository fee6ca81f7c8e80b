"""Geometries for benchmarks: the params.json of the published models, and a tiny one.

Names as in params.json: dim is the text width, hidden_dim the MLP width.
"""

import copy
from typing import Any

from vitrail.auto import AutoConfig
from vitrail.configs import PretrainedConfig
from vitrail.configs.params import config_from_params
from vitrail.errors import InputError

_TOWER_16 = {
    "hidden_size": 1024, "num_channels": 3, "image_size": 1024, "patch_size": 16, "rope_theta": 10000.0,
    "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_token_id": 10,
}  # fmt: skip
_TOWER_14 = {
    "image_token_id": 10, "image_break_token_id": 12, "image_end_token_id": 13, "intermediate_size": 4096,
    "num_hidden_layers": 24, "num_attention_heads": 16, "mm_projector_id": "patch_merge", "spatial_merge_size": 2,
    "hidden_size": 1024, "num_channels": 3, "image_size": 1540, "max_image_size": 1540, "patch_size": 14,
    "rope_theta": 10000.0, "add_pre_mm_projector_layer_norm": True, "adapter_bias": False,
}  # fmt: skip
_NULLS = dict.fromkeys(
    [
        "q_lora_rank",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
        "moe",
        "kv_sharing",
        "nope",
    ]
)


def _text(dim: int, layers: int, hidden: int, theta: float, **more: Any) -> dict[str, Any]:
    heads = {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "norm_eps": 1e-5, "vocab_size": 131072}
    return {"dim": dim, "n_layers": layers, "hidden_dim": hidden, "rope_theta": theta, **heads, **more}


def _yarn(original: int, factor: int) -> dict[str, Any]:
    return {
        "llama_4_scaling": {"original_max_position_embeddings": original, "beta": 0.1},
        "yarn": {
            "original_max_position_embeddings": original, "factor": factor, "apply_scale": False, "beta": 32, "alpha": 1,
        },
        **_NULLS,
    }  # fmt: skip


_LARGE_TOWER = {
    **_TOWER_16, "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 40, "adapter_bias": False,
    "image_break_token_id": 14, "image_end_token_id": 15,
}  # fmt: skip
# Command-line name → the geometry in the published params.json.
PUBLISHED: dict[str, dict[str, Any]] = {
    "pixtral-12b": {**_text(5120, 40, 14336, 1e9), "vision_encoder": _TOWER_16},
    "pixtral-large": {
        **_text(12288, 88, 28672, 1e9, n_heads=96, vocab_size=32768, max_position_embeddings=131072),
        "vision_encoder": _LARGE_TOWER,
    },
    "mistral-small-3.1": {**_text(5120, 40, 32768, 1e9, max_position_embeddings=131072), "vision_encoder": _TOWER_14},
    "devstral-small-2": {
        **_text(5120, 40, 32768, 1e8, max_position_embeddings=393216, **_yarn(8192, 48)),
        "vision_encoder": _TOWER_14,
    },
    "ministral-3-3b": {
        **_text(3072, 26, 9216, 1e6, tied_embeddings=True, max_position_embeddings=262144, **_yarn(16384, 16)),
        "vision_encoder": _TOWER_14,
    },
    "ministral-3-8b": {
        **_text(4096, 34, 14336, 1e6, tied_embeddings=False, max_position_embeddings=262144, **_yarn(16384, 16)),
        "vision_encoder": _TOWER_14,
    },
    "ministral-3-14b": {
        **_text(5120, 40, 16384, 1e9, max_position_embeddings=262144, **_yarn(16384, 16)),
        "vision_encoder": _TOWER_14,
    },
}  # fmt: skip
# Not a published model: every benchmark finishes in a second with it.
TINY = "tiny"
_TINY: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "hidden_dim": 128, "rope_theta": 1e6, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16,
    "norm_eps": 1e-5, "vocab_size": 512, "max_position_embeddings": 8192,
    "vision_encoder": {
        **_TOWER_16, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 128,
    },
}  # fmt: skip
NAMES = (*PUBLISHED, TINY)


def params_of(name: str, layers: int | None = None) -> dict[str, Any]:
    """Return the params.json of a geometry.

    Args:
        name: one of NAMES.
        layers: number of decoder layers; None: the geometry's own.

    Raises:
        InputError: unknown name, or fewer than one layer.
    """
    if name not in NAMES:
        raise InputError(f"geometry {name!r} is not known; one of {', '.join(NAMES)} was expected.")
    if layers is not None and layers < 1:
        raise InputError(f"a decoder of {layers} layers cannot be measured; give 1 or more.")
    params = copy.deepcopy(_TINY if name == TINY else PUBLISHED[name])
    return params if layers is None else {**params, "n_layers": layers}


def config_of(params: dict[str, Any]) -> PretrainedConfig:
    """Return the configuration object of a params.json."""
    data = config_from_params(params, "params.json")
    return AutoConfig.for_model(data.pop("model_type"), **data)
