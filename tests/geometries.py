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
from vitrail.bench import geometries as bench
from vitrail.bench.geometries import config_of
from vitrail.files.safetensors import write_safetensors

# As the models are called in the tests' names, and in vitrail.bench.
_CALLED = {
    "Pixtral 12B": "pixtral-12b",
    "Pixtral Large": "pixtral-large",
    "Small 3.1": "mistral-small-3.1",
    "Devstral Small 2": "devstral-small-2",
    "Ministral 3 3B": "ministral-3-3b",
    "Ministral 3 8B": "ministral-3-8b",
    "Ministral 3 14B": "ministral-3-14b",
}
PUBLISHED: dict[str, dict[str, Any]] = {name: bench.PUBLISHED[called] for name, called in _CALLED.items()}
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
