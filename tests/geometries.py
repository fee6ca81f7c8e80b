"""The published params.json of the family, small models of the same shape, and Mistral's own files written by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vitrail
from tests import tiny
from vitrail.configs.params import config_from_params
from vitrail.files.safetensors import write_safetensors

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
    (
        "q_lora_rank",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
        "moe",
        "kv_sharing",
        "nope",
    )
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


LARGE_TOWER = {
    **_TOWER_16, "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 40, "adapter_bias": False,
    "image_break_token_id": 14, "image_end_token_id": 15,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Pixtral 12B": {**_text(5120, 40, 14336, 1e9), "vision_encoder": _TOWER_16},
    "Pixtral Large": {
        **_text(12288, 88, 28672, 1e9, n_heads=96, vocab_size=32768, max_position_embeddings=131072),
        "vision_encoder": LARGE_TOWER,
    },
    "Small 3.1": {**_text(5120, 40, 32768, 1e9, max_position_embeddings=131072), "vision_encoder": _TOWER_14},
    "Devstral Small 2": {
        **_text(5120, 40, 32768, 1e8, max_position_embeddings=393216, **_yarn(8192, 48)),
        "vision_encoder": _TOWER_14,
    },
    "Ministral 3 3B": {
        **_text(3072, 26, 9216, 1e6, tied_embeddings=True, max_position_embeddings=262144, **_yarn(16384, 16)),
        "vision_encoder": _TOWER_14,
    },
    "Ministral 3 8B": {
        **_text(4096, 34, 14336, 1e6, tied_embeddings=False, max_position_embeddings=262144, **_yarn(16384, 16)),
        "vision_encoder": _TOWER_14,
    },
    "Ministral 3 14B": {
        **_text(5120, 40, 16384, 1e9, max_position_embeddings=262144, **_yarn(16384, 16)),
        "vision_encoder": _TOWER_14,
    },
}  # fmt: skip
# Parameters of each, as published (a tied head counts once).
COUNTS = {
    "Pixtral 12B": 12_682_739_712,
    "Pixtral Large": 124_134_845_824,
    "Small 3.1": 24_011_361_280,
    "Devstral Small 2": 24_011_361_280,
    "Ministral 3 3B": 3_849_090_048,
    "Ministral 3 8B": 8_918_026_240,
    "Ministral 3 14B": 13_945_031_680,
}


def small(name: str) -> dict[str, Any]:
    """A published geometry with the same ratios: text widths through 64, heads of 8; the tower's through 16."""
    params = copy.deepcopy(PUBLISHED[name])
    params |= {
        "dim": params["dim"] // 64,
        "hidden_dim": params["hidden_dim"] // 64,
        "head_dim": 8,
        "n_layers": 3,
    }
    params |= {"n_heads": params["n_heads"] // 4, "n_kv_heads": 2, "vocab_size": 320}
    tower = params["vision_encoder"]
    wide = tower["hidden_size"] == 1408  # heads of 44: their quarter is odd, as 88's
    tower |= {
        "hidden_size": tower["hidden_size"] // 16,
        "intermediate_size": tower["intermediate_size"] // 16,
    }
    tower |= {"num_hidden_layers": 2, "num_attention_heads": 2 if wide else 4}
    if "yarn" in params:  # a range that a few positions leave
        params["yarn"]["original_max_position_embeddings"] = 16
        params["llama_4_scaling"]["original_max_position_embeddings"] = 16
    return params


def config_of(params: dict[str, Any]) -> Any:
    """The configuration object of a params.json."""
    data = config_from_params(params, "params.json")
    return vitrail.AutoConfig.for_model(data.pop("model_type"), **data)


def model_of(params: dict[str, Any], seed: int = 0) -> Any:
    """A random model in float32 of a params.json's geometry."""
    config = config_of(params)
    kinds = {
        "llava": vitrail.LlavaForConditionalGeneration,
        "mistral3": vitrail.Mistral3ForConditionalGeneration,
    }
    return tiny.randomize(kinds.get(config.model_type, vitrail.MistralForCausalLM)(config), seed).eval()


def native_tensors(model: Any, params: dict[str, Any]) -> dict[str, Tensor]:
    """A model's tensors as consolidated.safetensors has them: the names and the order of rows written out here."""
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and params.get("tied_embeddings"):
            continue
        heads = 0
        if ".q_proj" in name or ".k_proj" in name:
            vision = "vision_tower" in name
            heads = params["vision_encoder"]["num_attention_heads"] if vision else params["n_heads"]
            heads = params["n_kv_heads"] if ".k_proj" in name and not vision else heads
        found[native_name(name)] = interleaved(tensor, heads) if heads else tensor
    return found


def native_name(name: str) -> str:
    """The published spelling of one of a model's tensors."""
    for own, native in (
        ("model.vision_tower.", "vision_encoder."), ("model.multi_modal_projector.linear_1", "vision_language_adapter.w_in"),
        ("model.multi_modal_projector.linear_2", "vision_language_adapter.w_out"),
        ("model.multi_modal_projector.norm", "pre_mm_projector_norm"), ("model.multi_modal_projector.", ""),
        ("model.language_model.", ""), ("lm_head", "output"), ("model.", ""), ("embed_tokens", "tok_embeddings"),
        ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"), ("self_attn", "attention"),
        ("mlp.", "feed_forward."), ("q_proj", "wq"), ("k_proj", "wk"), ("v_proj", "wv"), ("o_proj", "wo"),
        ("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3"),
    ):  # fmt: skip
        name = name.replace(own, native)
    return name


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows in halves, each head's put back to pairs side by side, one by one."""
    width = rows.shape[0] // heads
    order = [
        head * width + half * (width // 2) + pair
        for head in range(heads)
        for pair in range(width // 2)
        for half in (0, 1)
    ]
    return rows[torch.tensor(order)]


def write_native(folder: Path, params: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1) -> Path:
    """params.json and consolidated.safetensors, or so many shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params, indent=4) + "\n", encoding="utf-8")
    names = list(tensors)
    for number in range(shards):
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        file = "consolidated.safetensors"
        if shards > 1:
            file = f"consolidated-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, part)
    return folder
