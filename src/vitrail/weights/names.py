"""Tensor names: older and newer Hugging Face layouts, whole models and their parts.

The canonical name is that of transformers 5 for a vision-language model: model.language_model.…, model.vision_tower.…,
model.multi_modal_projector.…, lm_head.….
"""

from __future__ import annotations

from collections.abc import Iterable

# Prefix of a name → its canonical prefix; the first match applies.
_CANONICAL = (
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("model.language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    # a language model without a tower
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    # a decoder without its head
    ("embed_tokens.", "model.language_model.embed_tokens."),
    ("layers.", "model.language_model.layers."),
    ("norm.", "model.language_model.norm."),
    # a tower alone
    ("patch_conv.", "model.vision_tower.patch_conv."),
    ("ln_pre.", "model.vision_tower.ln_pre."),
    ("transformer.", "model.vision_tower.transformer."),
)
# Names written by transformers 4.57 and 5 for a vision-language model, and expected by other readers.
_SAVED = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_PARTS = ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector.", "lm_head.")

HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
PROJECTOR_BIASES = ("model.multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_2.bias")


def canonical(name: str) -> str:
    """Return the canonical name of a tensor from a file or a model; unknown names are unchanged."""
    for beginning, replacement in _CANONICAL:
        if name.startswith(beginning):
            return replacement + name[len(beginning) :]
    return name


def part(name: str) -> str:
    """Return the part of a vision-language model that a canonical name belongs to ("" for none)."""
    return next((beginning for beginning in _PARTS if name.startswith(beginning)), "")


def saved_names(names: Iterable[str]) -> dict[str, str]:
    """Map the model's names to names in a saved file: the older layout for a vision-language model, else the same."""
    own = list(names)
    whole = any(name.startswith(_PARTS[:3]) for name in own)
    return {name: _saved(name) if whole else name for name in own}


def published(name: str, *, vision: bool) -> str:
    """Return the name in published files of Hugging Face's format, of a whole model or of a text model."""
    return _saved(name) if vision else name.replace("model.language_model.", "model.", 1)


def _saved(name: str) -> str:
    for beginning, replacement in _SAVED:
        if name.startswith(beginning):
            return replacement + name[len(beginning) :]
    return name
