"""Pairs of models with the same random weights, ours and transformers', and inputs for both. No assertion but `close`.

The weights are drawn in transformers' model and loaded strictly into ours, so that names are compared too.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import vitrail

TEXT = {
    "model_type": "mistral", "vocab_size": 96, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "max_position_embeddings": 512, "sliding_window": None,
}  # fmt: skip
VISION = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 96, "patch_size": 8, "hidden_act": "silu", "rope_theta": 1e4,
}  # fmt: skip
IMAGE = 10
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Shape:
    """One tiny checkpoint: what differs from TEXT and VISION, and the images (rows, columns of patches)."""

    name: str
    family: str
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)
    images: tuple[tuple[int, int], ...] = ((3, 5), (1, 1), (4, 2))

    def __str__(self) -> str:
        return self.name

    @property
    def merge(self) -> int:
        """Side of the squares of patches that become one token."""
        return int(self.outer.get("spatial_merge_size", 2)) if self.family == "mistral3" else 1

    @property
    def tokens(self) -> list[int]:
        """Image tokens of each image."""
        return [(rows // self.merge) * (cols // self.merge) for rows, cols in self.images]


VISION_LANGUAGE = [
    Shape("pixtral", "llava", outer={"multimodal_projector_bias": True}),
    Shape("pixtral-large", "llava", {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 16},
          {"hidden_size": 176, "num_attention_heads": 2}, {"multimodal_projector_bias": False}),
    Shape("odd-widths", "llava", {"hidden_size": 51, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 14},
          {"hidden_size": 60, "num_attention_heads": 3, "patch_size": 5}, {"projector_hidden_act": "relu"}),
    Shape("feature-layers", "llava", {}, {"num_hidden_layers": 3}, {"vision_feature_layer": [-2, 0, 3]}),
    Shape("second-last-layer", "llava", {"num_key_value_heads": 4}, {"head_dim": 16}, {"vision_feature_layer": -2}),
    Shape("llava-tied", "llava", {"tie_word_embeddings": True}, {}, {"tie_word_embeddings": True}),
    Shape("small-3", "mistral3", {}, {"patch_size": 7}, {}, ((4, 6), (2, 2), (8, 2))),
    Shape("merge-1", "mistral3", {"head_dim": None}, {}, {"spatial_merge_size": 1}),
    Shape("merge-3", "mistral3", {"rms_norm_eps": 1e-3}, {"hidden_size": 88, "num_attention_heads": 1},
          {"spatial_merge_size": 3, "multimodal_projector_bias": True}, ((3, 6), (3, 3), (9, 3))),
    Shape("left-over-patches", "mistral3", {}, {}, {}, ((5, 4), (3, 3), (2, 7))),
    Shape("tied", "mistral3", {"tie_word_embeddings": True}, {}, {"tie_word_embeddings": True}, ((4, 6), (2, 2), (8, 2))),
    Shape("yarn", "mistral3", {"rope_scaling": YARN}, {}, {}, ((4, 6), (2, 2), (8, 2))),
    Shape("window", "llava", {"sliding_window": 5}),
]  # fmt: skip

TEXTS = [
    Shape("grouped", "mistral"),
    Shape("one-key-head", "mistral", {"num_key_value_heads": 1, "num_attention_heads": 8, "head_dim": 2}),
    Shape("as-many-key-heads", "mistral", {"num_key_value_heads": 4, "head_dim": None}),
    Shape("wide-heads", "mistral", {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}),
    Shape("gelu", "mistral", {"hidden_act": "gelu", "rope_theta": 1e9}),
    Shape("text-tied", "mistral", {"tie_word_embeddings": True}),
    Shape("window-1", "mistral", {"sliding_window": 1}),
    Shape("window-6", "mistral", {"sliding_window": 6}),
    Shape("text-yarn", "mistral", {"rope_scaling": YARN}),
    Shape("yarn-mscale", "mistral", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    Shape("yarn-mscales", "mistral", {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 8}}),
    Shape("yarn-factor", "mistral", {"rope_scaling": {**YARN, "attention_factor": 1.2, "beta_slow": 2}, "head_dim": 32}),
]  # fmt: skip

FAMILIES = {
    "llava": ("LlavaConfig", "LlavaForConditionalGeneration"),
    "mistral3": ("Mistral3Config", "Mistral3ForConditionalGeneration"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
}


@dataclass(frozen=True)
class Pair:
    """The same model twice."""

    ours: Any
    theirs: Any


def build(shape: Shape, *, attention: str = "eager", gain: float = 1.2) -> Pair:
    """Both models of a shape, float32, evaluation mode; the weights go from theirs to ours, strictly.

    gain: of every matrix on unit noise. Above 1 each part moves the logits much; below 1 gradients, which pass
    every part twice, stay well conditioned.
    """
    config_name, model_name = FAMILIES[shape.family]
    if shape.family == "mistral":
        settings = {**TEXT, **shape.text}
    else:
        settings = {"image_token_index": IMAGE, "vision_feature_layer": -1, **shape.outer}
        settings |= {"text_config": {**TEXT, **shape.text}, "vision_config": {**VISION, **shape.vision}}
        if shape.family == "llava":
            settings["vision_feature_select_strategy"] = "full"
    settings.pop("model_type", None)
    theirs = getattr(transformers, model_name)._from_config(
        getattr(transformers, config_name)(**settings), attn_implementation=attention
    )
    widen(theirs, gain)
    ours = getattr(vitrail, model_name)(getattr(vitrail, config_name).from_dict(theirs.config.to_dict()))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return Pair(ours.eval(), theirs.eval())


def widen(model: nn.Module, gain: float) -> None:
    """Draw every parameter by its name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(noise * 0.2 + ("norm" in name or "ln_" in name))
            else:
                parameter.copy_(
                    noise / math.sqrt(parameter[0].numel()) * (gain if "embed" not in name else 4.0)
                )


def inputs(shape: Shape, padding: str | None = "left") -> dict[str, Tensor]:
    """Two conversations of different lengths, the images dealt out to both; None: one conversation, no padding.

    position_ids are counted without the padding, as generate() does; transformers' bare forward() would count it.
    """
    generator = torch.Generator().manual_seed(7)

    def text(length: int) -> list[int]:
        return torch.randint(IMAGE + 1, 96, (length,), generator=generator).tolist()

    given: dict[str, Tensor] = {}
    counts = [] if shape.family == "mistral" else shape.tokens
    pieces = [[*text(2), *([IMAGE] * n)] for n in counts]
    rows = [
        [*(i for piece in pieces[:2] for i in piece), *text(9)],
        [*(i for p in pieces[2:] for i in p), *text(4)],
    ]
    if padding is None:
        rows = [[*rows[0], *rows[1]]]
    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        gap = longest - len(row)
        ids.append([0] * gap + row if padding != "right" else row + [0] * gap)
        mask.append([0] * gap + [1] * len(row) if padding != "right" else [1] * len(row) + [0] * gap)
    given["input_ids"], given["attention_mask"] = torch.tensor(ids), torch.tensor(mask)
    given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if counts:
        given |= images(shape)
    return given


def images(shape: Shape) -> dict[str, Tensor]:
    """pixel_values padded to the largest image with zeros, and image_sizes."""
    side = {**VISION, **shape.vision}["patch_size"]
    sizes = torch.tensor(shape.images) * side
    height, width = sizes.amax(dim=0).tolist()
    pixels = torch.zeros(len(sizes), 3, height, width)
    generator = torch.Generator().manual_seed(11)
    for image, (h, w) in zip(pixels, sizes.tolist(), strict=True):
        image[:, :h, :w] = torch.randn(3, h, w, generator=generator)
    return {"pixel_values": pixels, "image_sizes": sizes}


def joined_features(features: Tensor | tuple[Tensor, ...]) -> Tensor:
    """All images' features (tokens, D); the reference gives a tuple of them or one tensor."""
    return features if isinstance(features, Tensor) else torch.cat(list(features))


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the reference's largest value."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-30))


def close(ours: Tensor, theirs: Tensor, what: str, bound: float = 1e-5) -> None:
    """Every number within `bound` of the tensor's largest value, and none of them NaN."""
    assert ours.dtype == theirs.dtype, what
    found = distance(ours, theirs)
    assert found <= bound, f"{what}: {found:.2e}"
