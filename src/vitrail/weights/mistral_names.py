"""Tensor names in Mistral's own files ↔ canonical names (names.py).

Both are a module's path and "weight" or "bias"; {} stands for a layer index.
"""

from __future__ import annotations

import re

_DECODER = "model.language_model."
_TOWER = "model.vision_tower.transformer."
_NATIVE_TOWER = "vision_encoder.transformer."
_PROJECTOR = "model.multi_modal_projector."

_MODULES = {
    "tok_embeddings": _DECODER + "embed_tokens",
    "norm": _DECODER + "norm",
    "output": "lm_head",
    "layers.{}.attention_norm": _DECODER + "layers.{}.input_layernorm",
    "layers.{}.ffn_norm": _DECODER + "layers.{}.post_attention_layernorm",
    "vision_encoder.patch_conv": "model.vision_tower.patch_conv",
    "vision_encoder.ln_pre": "model.vision_tower.ln_pre",
    "vision_language_adapter.w_in": _PROJECTOR + "linear_1",
    "vision_language_adapter.w_out": _PROJECTOR + "linear_2",
    "patch_merger.merging_layer": _PROJECTOR + "patch_merger.merging_layer",
    "pre_mm_projector_norm": _PROJECTOR + "norm",
}
_MODULES |= {
    f"{_NATIVE_TOWER}layers.{{}}.{norm}": f"{_TOWER}layers.{{}}.{norm}"
    for norm in ("attention_norm", "ffn_norm")
}
for _native, _own in (("wq", "q_proj"), ("wk", "k_proj"), ("wv", "v_proj"), ("wo", "o_proj")):
    _MODULES[f"layers.{{}}.attention.{_native}"] = f"{_DECODER}layers.{{}}.self_attn.{_own}"
    _MODULES[f"{_NATIVE_TOWER}layers.{{}}.attention.{_native}"] = f"{_TOWER}layers.{{}}.attention.{_own}"
for _native, _own in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
    _MODULES[f"layers.{{}}.feed_forward.{_native}"] = f"{_DECODER}layers.{{}}.mlp.{_own}"
    _MODULES[f"{_NATIVE_TOWER}layers.{{}}.feed_forward.{_native}"] = (
        f"{_TOWER}layers.{{}}.feed_forward.{_own}"
    )
_BACK = {own: native for native, own in _MODULES.items()}

_NUMBER = re.compile(r"(?<=layers\.)(0|[1-9]\d{0,5})(?=\.)", re.ASCII)


def from_native(name: str) -> str | None:
    """Return the canonical name of a tensor in a consolidated file, or None."""
    return _translate(name, _MODULES)


def to_native(name: str) -> str | None:
    """Return the name in a consolidated file of a tensor with a canonical name, or None."""
    return _translate(name, _BACK)


def _translate(name: str, modules: dict[str, str]) -> str | None:
    path, _, leaf = name.rpartition(".")
    number = _NUMBER.search(path)
    pattern = path if number is None else f"{path[: number.start()]}{{}}{path[number.end() :]}"
    found = modules.get(pattern)
    if found is None or leaf not in ("weight", "bias"):
        return None
    return f"{found if number is None else found.replace('{}', number[0])}.{leaf}"
